//! Which addresses a name may lead to: looked at when a connection is made, because a name can lead
//! elsewhere than it did when the configuration was checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why a connection to `address` is refused; `None`: it is not. `stays_here`: plain HTTP, which must not leave
/// this machine.
///
/// Private networks are allowed: the platform is there, and where all HTTPS goes through a gateway of the
/// house so is DingTalk.
pub(super) fn refusal(address: IpAddr, stays_here: bool) -> Option<&'static str> {
    let address = canonical(address);
    if stays_here && !address.is_loopback() {
        return Some("http:// must not leave this machine");
    }
    let nobodys = address.is_unspecified() || address.is_multicast();
    let (broadcast, link_local) = match address {
        IpAddr::V4(v4) => (v4.is_broadcast(), v4.is_link_local()),
        IpAddr::V6(v6) => (false, v6.is_unicast_link_local()),
    };
    if nobodys || broadcast {
        Some("that is nobody's address")
    } else if link_local {
        // Where clouds keep a machine's credentials.
        Some("that is an address of the link only")
    } else {
        None
    }
}

/// The IPv4 address within one that is mapped (`::ffff:0:0/96`) or translated (NAT64, `64:ff9b::/96`).
fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => from_nat64(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn from_nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else {
        return None;
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_no_address_of_the_link_or_of_nobody_in_any_disguise() {
        let table = [
            ("203.107.1.1", true, false),
            ("10.0.0.8", true, false),
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("2400:3200::1", true, false),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("64:ff9b::a9fe:a9fe", false, false),
            ("64:ff9b::cb6b:101", true, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("255.255.255.255", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
        ];
        for (address, tls, plain) in table {
            let parsed = address.parse().unwrap();
            assert_eq!(refusal(parsed, false).is_none(), tls, "{address}");
            assert_eq!(refusal(parsed, true).is_none(), plain, "{address}");
        }
    }
}
