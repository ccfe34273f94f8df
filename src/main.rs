//! Arguments in, exit code out; everything between is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dingd::cli::main()
}
