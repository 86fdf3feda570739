//! Checks of texts and times that callers bring.

use std::time::Duration;

use crate::error::StoreError;

/// Refuses a text that is too long.
pub(crate) fn check_length(
    unit: &'static str,
    text: &str,
    bytes_max: usize,
) -> Result<(), StoreError> {
    if text.len() > bytes_max {
        let limit = bytes_max as u64;
        return Err(StoreError::TooLarge { unit, limit });
    }
    Ok(())
}

/// Refuses a name that cannot stand in a log or an address as it is.
pub(crate) fn check_name(text: &str, bytes_max: usize) -> Result<(), StoreError> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(StoreError::InvalidName("it is empty or too long"));
    }
    // No space and no colon: keys of rows have a colon behind the name.
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if !text.bytes().all(is_allowed) {
        return Err(StoreError::InvalidName(
            "it has a sign other than letters, digits, '.', '_', '-' and '/'",
        ));
    }
    Ok(())
}

/// The end of a lease or a lock that begins now, in milliseconds since 1970-01-01 UTC.
pub(crate) fn end_ms(now_ms: u64, time: Duration, time_max: Duration) -> u64 {
    // Clamped and not refused: protocols let the server choose a shorter time, and the caller sees
    // the end.
    now_ms.saturating_add(duration_ms(time.min(time_max)))
}

/// Whole milliseconds.
pub(crate) fn duration_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
