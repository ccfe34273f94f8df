//! An answer's body: bounded while it arrives, bounded again while it is decompressed.
//!
//! We ask for no compression, but a gateway on the way may compress all the same. What cannot be had
//! whole is handed on as far as it came and marked: whoever reads it must not take it for the truth.

use std::io::Read as _;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::CONTENT_ENCODING;

/// An answer's body is cut here, before and after it is decompressed.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// A body as far as it came.
#[derive(Debug)]
pub(super) struct Collected {
    /// At most [`BYTES_MAX`].
    pub(super) bytes: Bytes,
    /// False if there was more, or ought to have been.
    pub(super) complete: bool,
}

/// Reads a body to its end or its limit.
pub(super) async fn collect(mut body: impl Body<Data = Bytes> + Unpin) -> Collected {
    let mut bytes = BytesMut::new();
    let mut complete = true;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            complete = false;
            break;
        };
        // Trailers are of no interest.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let room = BYTES_MAX - bytes.len();
        bytes.extend_from_slice(data.get(..room).unwrap_or(&data));
        if data.len() > room {
            complete = false;
            break;
        }
    }
    Collected {
        bytes: bytes.freeze(),
        complete,
    }
}

/// Undoes the compression that the headers name. Unknown ones, and several on top of each other, are
/// not undone: then nobody knows what the bytes say.
pub(super) fn decode(headers: &HeaderMap, body: Collected) -> Collected {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let (coding, more) = (codings.next(), codings.next().is_some());
    let is = |name: &str| {
        coding.is_none_or(|coding| {
            coding
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(name.as_bytes())
        })
    };
    if is("identity") && !more {
        return body;
    }
    if (is("gzip") || is("x-gzip")) && !more {
        return gunzip(&body);
    }
    Collected {
        bytes: Bytes::new(),
        complete: false,
    }
}

/// Never makes more than the limit, however little it takes to ask for it.
fn gunzip(body: &Collected) -> Collected {
    if body.bytes.is_empty() {
        return Collected {
            bytes: Bytes::new(),
            complete: body.complete,
        };
    }
    let mut bytes = Vec::new();
    let mut decoder = MultiGzDecoder::new(&*body.bytes).take(BYTES_MAX as u64 + 1);
    let whole = decoder.read_to_end(&mut bytes).is_ok() && bytes.len() <= BYTES_MAX;
    bytes.truncate(BYTES_MAX);
    Collected {
        bytes: bytes.into(),
        complete: whole && body.complete,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use hyper::header::HeaderValue;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(codings: &[&'static str], bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        let body = Collected {
            bytes: Bytes::copy_from_slice(bytes),
            complete: true,
        };
        let body = decode(&headers, body);
        (body.bytes.to_vec(), body.complete)
    }

    #[test]
    fn gzip_is_undone_and_nothing_else() {
        let plain = br#"{"errcode":0}"#;
        let zipped = gzip(plain);
        for codings in [&[][..], &["identity"], &[" Identity "]] {
            assert_eq!(decoded(codings, plain), (plain.to_vec(), true));
        }
        for coding in ["gzip", "GZIP", "x-gzip"] {
            assert_eq!(decoded(&[coding], &zipped), (plain.to_vec(), true));
        }
        let twice = [zipped.clone(), zipped.clone()].concat();
        assert_eq!(decoded(&["gzip"], &twice), (plain.repeat(2), true));
        assert_eq!(decoded(&["gzip"], b""), (vec![], true));
        for codings in [
            &["br"][..],
            &["deflate"],
            &["gzip, gzip"],
            &["gzip", "gzip"],
        ] {
            assert_eq!(decoded(codings, &zipped), (vec![], false), "{codings:?}");
        }
    }

    #[test]
    fn damaged_gzip_is_not_whole() {
        let zipped = gzip(br#"{"errcode":0}"#);
        let mut flipped = zipped.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        let trailed = [&zipped[..], b"x"].concat();
        for bytes in [&flipped[..], &trailed, &zipped[..zipped.len() - 1], b"{}"] {
            assert!(!decoded(&["gzip"], bytes).1, "{bytes:?}");
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let (bytes, complete) = decoded(&["gzip"], &gzip(&vec![b' '; BYTES_MAX]));
        assert_eq!((bytes.len(), complete), (BYTES_MAX, true));
        let (bytes, complete) = decoded(&["gzip"], &gzip(&vec![b' '; 64 * BYTES_MAX]));
        assert_eq!((bytes.len(), complete), (BYTES_MAX, false));
    }
}
