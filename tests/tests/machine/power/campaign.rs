//! Cuts of one campaign: their random numbers, and the image of a cut that failed a test.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use alknet_qemu::DiskRecording;

/// Environment variable with the seed of the random numbers. Without it the clock gives the seed.
const SEED_VARIABLE: &str = "ALKNET_SEED";

/// Makes at `image` what the disk of a recording may hold if the power goes now. Of a few seeds the function takes the
/// one with which the disk loses most of what it has not flushed.
pub(crate) fn cut_now(recording: &DiskRecording, image: &Path) {
    const SEEDS: u64 = 12;
    let cut = |seed| {
        let cut = recording.cut(recording.len(), seed, image);
        cut.unwrap_or_else(|error| panic!("{error}"))
    };
    let most = (0..SEEDS).min_by_key(|seed| cut(*seed).whole);
    let cut = cut(most.expect("there are some"));
    eprintln!("the power goes at {}: {cut:?}", recording.len());
}

/// The image of a cut. When the test fails, the image stays beside the logs of failed machines.
pub(crate) struct Evidence(pub(crate) PathBuf);

impl Drop for Evidence {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let kept = || -> Result<PathBuf, Box<dyn Error>> {
            let file = tempfile::Builder::new()
                .prefix("alknet-power-cut-")
                .suffix(".raw")
                .tempfile()?;
            let (_, kept) = file.keep()?;
            alknet_qemu::copy(&self.0, &kept)?;
            Ok(kept)
        };
        match kept() {
            Ok(kept) => eprintln!("the disk after the cut is kept in {}", kept.display()),
            Err(error) => eprintln!("the disk after the cut is lost: {error}"),
        }
    }
}

/// The random numbers of SplitMix64: the same seed makes the same campaign.
pub(crate) struct CampaignRng(u64);

impl CampaignRng {
    pub(crate) fn from_environment() -> Self {
        let set = std::env::var(SEED_VARIABLE).ok();
        let seed = set.map_or_else(Self::clock, |text| {
            text.parse()
                .unwrap_or_else(|error| panic!("{SEED_VARIABLE} is {text:?}: {error}"))
        });
        eprintln!("{SEED_VARIABLE}={seed}");
        Self(seed)
    }

    fn clock() -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or_default()
    }
}
