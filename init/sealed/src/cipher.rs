//! The ciphers of the data.

use std::fmt;

/// The two ciphers of partitions that this program makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorCipher {
    /// For processors without AES instructions, where AES is several times slower.
    Adiantum,
    /// For all other processors.
    AesXts,
}

impl SectorCipher {
    /// The cipher for this processor.
    #[must_use]
    pub fn for_this_machine() -> Self {
        if has_aes_instructions() {
            Self::AesXts
        } else {
            Self::Adiantum
        }
    }

    /// The name in LUKS2 and device mapper.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adiantum => "xchacha12,aes-adiantum-plain64",
            Self::AesXts => "aes-xts-plain64",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Adiantum, Self::AesXts]
            .into_iter()
            .find(|cipher| cipher.name() == name)
    }

    /// Bytes of the volume key of a partition that this program makes.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Adiantum => 32,
            Self::AesXts => 64,
        }
    }

    /// Whether a partition that another program made may have a volume key of this length.
    pub(crate) const fn takes(self, key_bytes: usize) -> bool {
        // AES-128 in XTS has two keys of 16 bytes.
        key_bytes == self.key_bytes() || (matches!(self, Self::AesXts) && key_bytes == 32)
    }
}

impl fmt::Display for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes_instructions() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes_instructions() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_others_are_not() {
        for cipher in [SectorCipher::Adiantum, SectorCipher::AesXts] {
            assert_eq!(SectorCipher::from_name(cipher.name()), Some(cipher));
            assert!(cipher.takes(cipher.key_bytes()));
            assert!(!cipher.takes(16));
        }
        assert_eq!(SectorCipher::from_name("aes-cbc-essiv:sha256"), None);
        assert!(!SectorCipher::Adiantum.takes(64));
    }

    #[test]
    fn the_choice_follows_the_processor() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").expect("Linux");
        let line = flags
            .lines()
            .find(|line| line.starts_with("flags") || line.starts_with("Features"))
            .expect("a processor has features");
        let expected = if line.split_whitespace().any(|word| word == "aes") {
            SectorCipher::AesXts
        } else {
            SectorCipher::Adiantum
        };
        assert_eq!(SectorCipher::for_this_machine(), expected);
    }
}
