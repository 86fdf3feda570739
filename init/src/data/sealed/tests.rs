//! Partitions of a first boot: one that was cut short, and one on a disk that keeps the GUIDs of the image.

use std::os::unix::fs::FileExt;

use alknet_core::config::VaultSection;
use alknet_provisioning::{ConfigOrigin, MediaSecrets};
use alknet_vault::Entropy;
use alknet_vault::slots::{FirstBootPermissions, NewSlot, NewVault};

use super::*;
use crate::control::MachineDiagnostic;
use crate::vault::UnlockCredentials;

/// A blank disk in a file.
struct BlankDisk {
    path: PathBuf,
    file: File,
    found: DataDevice,
    _folder: tempfile::TempDir,
}

impl BlankDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("disk");
        let mut options = FileOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.expect("a new file");
        file.set_len(SEALED_BYTES_MIN).expect("a sparse file");
        // An absolute path stays as it is below /dev.
        let name = path.to_str().expect("text").to_owned();
        Self {
            path,
            file,
            found: DataDevice::Disk { name },
            _folder: folder,
        }
    }

    /// A blank disk with the vault of a first boot that was cut short.
    fn with_vault() -> Self {
        let disk = Self::new();
        let vault = NewVault {
            pending: FirstBootPermissions::ALL,
            ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
        };
        let made = OpenAlkv::create(vault, NewSlot::None).expect("made");
        copies(&disk.path).create(&made).expect("written");
        disk
    }

    fn device(&self, image_guids: ImageGuids) -> DataBlockDevice<'_> {
        DataBlockDevice {
            found: &self.found,
            file: &self.file,
            bytes: SEALED_BYTES_MIN,
            image_guids,
        }
    }

    /// All that a first boot writes before it encrypts anything.
    fn head(&self) -> Vec<u8> {
        let mut head = vec![0; usize::try_from(DATA_AT).expect("a number of bytes")];
        self.file.read_exact_at(&mut head, 0).expect("ours");
        head
    }
}

/// Does `work` with a closed vault, which has to stay closed. `takes_blank` is false for a version on trial.
fn with_access<T>(takes_blank: bool, work: impl FnOnce(DataAccess<'_>) -> T) -> T {
    let vault = VaultHandle::new().expect("memory");
    let (offer, log) = (UnlockCredentials::default(), InitLog::default());
    let done = work(DataAccess {
        vault: &vault,
        offer: &offer,
        log: &log,
        takes_blank,
    });
    assert!(!vault.is_open());
    done
}

#[track_caller]
fn refusal(outcome: Result<Option<PreparedData>, DataError>) -> MachineDiagnostic {
    match outcome {
        Ok(opened) => panic!("it was opened: {opened:?}"),
        Err(DataError::Problem(problem)) => *problem,
        Err(DataError::Waiting(waiting, _)) => waiting.problem,
    }
}

/// What media ask for.
fn media(init: VaultInit, stateless: bool) -> VaultMedia {
    VaultMedia {
        vault: VaultSection {
            init,
            ..VaultSection::default()
        },
        from: ConfigOrigin::Default,
        stateless,
        name: None,
        secrets: MediaSecrets::default(),
    }
}

/// An attacker exchanges the data disk while a version is on trial.
#[test]
fn a_version_on_trial_ends_no_first_boot() {
    let disk = BlankDisk::with_vault();
    let before = disk.head();
    let device = disk.device(ImageGuids::Absent);
    let problem = with_access(false, |access| refusal(open(&device, access)));
    assert!(
        problem.text.contains("this version is or may be on trial"),
        "{problem:?}"
    );
    assert!(disk.head() == before, "it was written to");
}

/// The attack: a disk does not take the GUIDs of a first start, and has a vault in the place of the machine's own. The start
/// cannot tell it from one that the disk had before the image was written.
#[test]
fn a_disk_that_keeps_the_guids_of_the_image_ends_no_first_boot() {
    let disk = BlankDisk::with_vault();
    let before = disk.head();
    let device = disk.device(ImageGuids::Present);
    let problem = with_access(true, |access| refusal(open(&device, access)));
    assert_eq!(problem.code, "data-unwritable", "{problem:?}");
    assert!(disk.head() == before, "it was written to");
}

/// Two machines with disks of one build, or one machine and a copy of its disk, could not be told apart.
#[test]
fn a_disk_that_keeps_the_guids_of_the_image_gets_no_vault() {
    let disk = BlankDisk::new();
    let before = disk.head();
    let first = |image_guids, media: &VaultMedia| {
        let mut device = disk.device(image_guids);
        // No vault fits, so none is made in any case.
        device.bytes = DATA_AT;
        with_access(true, |access| first_with(&device, media, access))
    };
    let vault = media(VaultSection::default().init, false);
    assert_ne!(vault.vault.init, VaultInit::Off);
    let problem = refusal(first(ImageGuids::Present, &vault));
    assert_eq!(problem.code, "data-unwritable", "{problem:?}");
    let problem = refusal(first(ImageGuids::Absent, &vault));
    assert_eq!(problem.code, "data-too-small", "{problem:?}");

    // A node that keeps nothing starts all the same, and one without a vault has no vault to lose.
    for init in [VaultInit::Off, vault.vault.init] {
        let prepared = match first(ImageGuids::Present, &media(init, true)) {
            Ok(prepared) => prepared.expect("it serves from memory"),
            Err(stop) => panic!("{:?}", refusal(Err(stop))),
        };
        assert_eq!(prepared.state.mode, "volatile", "{init:?}");
        assert_eq!(prepared.vault_at, None, "{init:?}");
    }
    let plain = first(ImageGuids::Present, &media(VaultInit::Off, false));
    assert!(matches!(plain, Ok(None)), "a plain file system");
    assert!(disk.head() == before, "it was written to");
}
