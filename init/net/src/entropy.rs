//! Random numbers straight from the kernel, without ever waiting: PID 1 must not stand still
//! while a machine without a hardware source gathers entropy. (A static binary finds no
//! `getrandom` symbol at run time, so that the usual library waits on `/dev/random`.)

use std::io;

/// For jitter and transaction numbers: any bits will do, also before the kernel is sure of them.
pub(crate) fn careless_u64() -> u64 {
    fill(libc::GRND_INSECURE).unwrap_or(0x616c_6b6e_6574)
}

/// For numbers that an attacker must not guess; fails while the kernel is not sure of its numbers.
pub(crate) fn secret_u64() -> io::Result<u64> {
    fill(libc::GRND_NONBLOCK)
}

fn fill(flags: u32) -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is ours and as long as said.
    let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    // Up to 256 bytes come whole or not at all.
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
