//! `cargo xtask` prepares the machine and starts this program.

use std::process::ExitCode;

fn main() -> ExitCode {
    alknet_tasks::main()
}
