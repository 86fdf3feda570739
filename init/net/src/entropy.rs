//! Random numbers directly from the kernel, without waiting: PID 1 must not stop while a machine
//! without a hardware source gathers entropy. (A static binary finds no `getrandom` symbol at run
//! time, so the usual library would wait for `/dev/random`.)

use std::io;

/// A number for jitter and transaction numbers. The kernel may not have enough entropy yet.
pub(crate) fn careless_u64() -> u64 {
    fill(libc::GRND_INSECURE).unwrap_or(0x616c_6b6e_6574)
}

/// A number that an attacker must not guess. Fails while the kernel does not have enough entropy.
pub(crate) fn secret_u64() -> io::Result<u64> {
    fill(libc::GRND_NONBLOCK)
}

fn fill(flags: u32) -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer belongs to this function and has the given length.
    let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        assert_ne!(careless_u64(), careless_u64());
        assert_ne!(secret_u64().ok(), secret_u64().ok());
    }
}
