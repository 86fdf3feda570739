//! How a part of a program is compressed, so that the same bytes come out again.

use std::fmt;
use std::io::{self, Write};

use zstd::stream::write::Encoder;
use zstd::zstd_safe::{CParameter, Strategy, version_number};

use crate::limits::{
    RECIPE_BYTES_MAX, RECIPE_SEARCH_LOG_MAX, RECIPE_TARGET_LENGTH_MAX, UNPACKED_BYTES_MAX,
};

/// Any level: each parameter of it is set afterwards.
const LEVEL: i32 = 12;
/// Buffers of the library beside its window and its tables: two blocks, and what it notes of one.
const BUFFERS_BYTES: u64 = 1 << 20;
/// Largest window, as a power of two: what a kernel takes for its initial file system has 8 MiB.
const WINDOW_LOG_MAX: u8 = 22;
/// Smallest window and tables of the library.
const LOG_MIN: u8 = 10;

/// The version number of the compressing library in this program: `major * 10000 + minor * 100 + patch`.
#[must_use]
pub fn library_version() -> u32 {
    version_number()
}

/// The parameters of a frame of Zstandard. The same parameters make the same bytes with one version of the library.
///
/// None of them follows from a level: what a level means depends on the length of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRecipe {
    /// Bytes that a match may lie back, as a power of two.
    pub window_log: u8,
    /// Entries of the hash table, as a power of two.
    pub hash_log: u8,
    /// Entries of the chain table, as a power of two.
    pub chain_log: u8,
    /// Attempts of a search, as a power of two.
    pub search_log: u8,
    /// Shortest match.
    pub min_match: u8,
    /// Length of a match from which a search ends.
    pub target_length: u16,
    /// The strategy by its number in the library, 1 (fast) to 5 (lazy2).
    pub strategy: u8,
}

/// A recipe that takes more memory or time than a machine gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recipe of a compressed frame is out of range: {0}")]
pub struct InvalidRecipe(&'static str);

impl FrameRecipe {
    /// What the initial file system of a program is compressed with: as level 12, whose table would take three times the
    /// memory, and with shorter matches, which make up for it.
    pub const INITRAMFS: Self = Self {
        window_log: 22,
        hash_log: 20,
        chain_log: LOG_MIN,
        search_log: 6,
        min_match: 4,
        target_length: 32,
        strategy: 5,
    };

    /// Bytes of memory that compressing takes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let power = |log: u8| 1_u64.checked_shl(log.into()).unwrap_or(u64::MAX);
        // Four bytes an entry; searches by rows have one byte more for each of the hash table, and no chain.
        let hash = power(self.hash_log).saturating_mul(5);
        let chain = power(self.chain_log).saturating_mul(4);
        power(self.window_log)
            .saturating_add(hash)
            .saturating_add(chain)
            .saturating_add(BUFFERS_BYTES)
    }

    /// Fails if a machine does not follow the recipe.
    ///
    /// # Errors
    /// The parameter that is out of range.
    pub fn check(&self) -> Result<(), InvalidRecipe> {
        let logs = [self.window_log, self.hash_log, self.chain_log];
        let wrong = [
            (
                logs.iter()
                    .any(|log| !(LOG_MIN..=WINDOW_LOG_MAX).contains(log)),
                "its window or a table",
            ),
            (
                !(1..=RECIPE_SEARCH_LOG_MAX).contains(&self.search_log),
                "its search",
            ),
            (!(3..=7).contains(&self.min_match), "its shortest match"),
            (
                self.target_length > RECIPE_TARGET_LENGTH_MAX,
                "its target length",
            ),
            (self.strategy().is_none(), "its strategy"),
            (self.memory_bytes() > RECIPE_BYTES_MAX, "its memory"),
        ];
        match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, what)) => Err(InvalidRecipe(what)),
            None => Ok(()),
        }
    }

    /// The strategies that search along a chain or a row. Those with trees take several times as long.
    fn strategy(&self) -> Option<Strategy> {
        Some(match self.strategy {
            1 => Strategy::ZSTD_fast,
            2 => Strategy::ZSTD_dfast,
            3 => Strategy::ZSTD_greedy,
            4 => Strategy::ZSTD_lazy,
            5 => Strategy::ZSTD_lazy2,
            _ => return None,
        })
    }

    /// Begins a frame of `bytes` bytes of content. The content may come in any pieces.
    ///
    /// # Errors
    /// The recipe is out of range, or there is no memory.
    pub(crate) fn encoder<W: Write>(
        self,
        bytes: u64,
        output: W,
    ) -> io::Result<Encoder<'static, W>> {
        self.check().map_err(io::Error::other)?;
        let strategy = self.strategy().unwrap_or(Strategy::ZSTD_lazy2);
        let mut encoder = Encoder::new(output, LEVEL)?;
        for parameter in [
            CParameter::WindowLog(self.window_log.into()),
            CParameter::HashLog(self.hash_log.into()),
            CParameter::ChainLog(self.chain_log.into()),
            CParameter::SearchLog(self.search_log.into()),
            CParameter::MinMatch(self.min_match.into()),
            CParameter::TargetLength(self.target_length.into()),
            CParameter::Strategy(strategy),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
        ] {
            encoder.set_parameter(parameter)?;
        }
        encoder.set_pledged_src_size(Some(bytes))?;
        Ok(encoder)
    }

    /// Compresses into one frame.
    ///
    /// # Errors
    /// The recipe or the content is out of range, or writing fails.
    pub fn compress(self, content: &[u8], output: impl Write) -> io::Result<()> {
        if content.len() as u64 > UNPACKED_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut encoder = self.encoder(content.len() as u64, output)?;
        encoder.write_all(content)?;
        encoder.finish()?.flush()
    }
}

impl fmt::Display for FrameRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wlog={},hlog={},clog={},slog={},mml={},tlen={},strat={}",
            self.window_log,
            self.hash_log,
            self.chain_log,
            self.search_log,
            self.min_match,
            self.target_length,
            self.strategy
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(content: &[u8], piece: usize) -> Vec<u8> {
        let recipe = FrameRecipe::INITRAMFS;
        let mut encoder = recipe
            .encoder(content.len() as u64, Vec::new())
            .expect("in range");
        for piece in content.chunks(piece) {
            encoder.write_all(piece).expect("into memory");
        }
        encoder.finish().expect("into memory")
    }

    proptest! {
        // Each case compresses up to 800 kB twice.
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// A machine writes in other pieces than the program that made the image.
        #[test]
        fn the_pieces_of_the_content_do_not_matter(
            words in proptest::collection::vec(0_u32..400, 0..200_000),
            piece in 1_usize..300_000,
        ) {
            let content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut whole = Vec::new();
            FrameRecipe::INITRAMFS.compress(&content, &mut whole).expect("into memory");
            prop_assert!(frame(&content, piece) == whole);
            let back = zstd::decode_all(&*whole).expect("a frame");
            prop_assert!(back == content);
        }
    }

    #[test]
    fn a_recipe_that_takes_too_much_is_refused() {
        let good = FrameRecipe::INITRAMFS;
        assert_eq!(good.check(), Ok(()));
        let mut largest = good;
        largest.search_log = RECIPE_SEARCH_LOG_MAX;
        largest.target_length = RECIPE_TARGET_LENGTH_MAX;
        assert_eq!(largest.check(), Ok(()));
        for (change, what) in [
            (
                FrameRecipe {
                    window_log: 23,
                    ..good
                },
                "its window or a table",
            ),
            (
                FrameRecipe {
                    hash_log: 9,
                    ..good
                },
                "its window or a table",
            ),
            (
                FrameRecipe {
                    search_log: RECIPE_SEARCH_LOG_MAX + 1,
                    ..good
                },
                "its search",
            ),
            (
                FrameRecipe {
                    search_log: 0,
                    ..good
                },
                "its search",
            ),
            (
                FrameRecipe {
                    min_match: 8,
                    ..good
                },
                "its shortest match",
            ),
            (
                FrameRecipe {
                    target_length: RECIPE_TARGET_LENGTH_MAX + 1,
                    ..good
                },
                "its target length",
            ),
            (
                FrameRecipe {
                    strategy: 6,
                    ..good
                },
                "its strategy",
            ),
            (
                FrameRecipe {
                    strategy: 0,
                    ..good
                },
                "its strategy",
            ),
            (
                FrameRecipe {
                    chain_log: 21,
                    ..good
                },
                "its memory",
            ),
        ] {
            assert_eq!(change.check(), Err(InvalidRecipe(what)), "{change}");
            assert!(change.compress(b"content", Vec::new()).is_err(), "{change}");
        }
    }
}
