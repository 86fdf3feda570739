use std::sync::OnceLock;

/// Memory that all machines of a test may have at the same time, MiB.
const MACHINES: &str = "ALKNET_TEST_MACHINES_MIB";

/// Memory that all machines of a test may have at the same time, MiB, by the runner's plan; `None` where no runner
/// planned.
///
/// The function reads it from `ALKNET_TEST_MACHINES_MIB` once in the life of the process.
///
/// # Panics
///
/// Where the variable is not a number.
pub fn machines_mib() -> Option<u32> {
    static LIMIT: OnceLock<Option<u32>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let text = std::env::var_os(MACHINES)?;
        let text = text.to_string_lossy();
        let number = text.parse().ok();
        Some(
            number
                .unwrap_or_else(|| panic!("{MACHINES} is {text:?}, and has to be a number of MiB")),
        )
    })
}
