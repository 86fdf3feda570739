//! `cargo xtask` gets the machine ready and starts this.

use std::process::ExitCode;

fn main() -> ExitCode {
    alknet_tasks::main()
}
