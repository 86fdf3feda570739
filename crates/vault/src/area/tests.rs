use std::fs::File;
use std::io::{Read as _, pipe};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicBool;
use std::thread;

use alknet_test_support::{skip, skipped};

use super::*;
use crate::{Entropy, KeyPurpose, KeyVersions, SecretStr, StateChange, Vault, VaultState};

/// One of every kind that this kernel has.
fn shared() -> Vec<SeedArea> {
    let mut areas = vec![SeedArea::create_as(AreaKind::Sealed).expect("made")];
    match SeedArea::create_as(AreaKind::Secret) {
        Ok(area) => areas.push(area),
        Err(error) => skipped("memfd_secret", format_args!("only the other kind: {error}")),
    }
    areas
}

fn again(area: &SeedArea) -> Result<SeedArea, AreaError> {
    let fd = area.fd().expect("it is shared");
    SeedArea::from_fd(fd.try_clone_to_owned().expect("a descriptor"))
}

fn seed(byte: u8) -> Seed {
    Seed::copy_of(&[byte; 64])
}

const ZERO: PathIndex = PathIndex::new(0).expect("small");

#[test]
fn what_one_mapping_does_the_other_sees() {
    for area in shared() {
        let other = again(&area).expect("an area");
        assert_eq!(other.kind(), area.kind());
        assert!(other.read(ZERO).is_none());
        assert_eq!(area.unlock(ZERO, &seed(1)), Some(1));
        assert_eq!(other.unlock(ZERO, &seed(2)), None);
        let open = other.read(ZERO).expect("open");
        assert_eq!((open.epoch, open.seed), (1, seed(1)));
        assert!(other.lock() && !area.lock());
        assert!(area.read(ZERO).is_none());
        assert_eq!(other.unlock(ZERO, &seed(2)), Some(2));
        assert_eq!(area.read(ZERO).expect("open").seed, seed(2));
    }
}

#[test]
fn a_locked_area_holds_nothing_of_the_seed() {
    let area = SeedArea::create_as(AreaKind::Sealed).expect("made");
    let file = File::from(area.fd().expect("shared").try_clone_to_owned().expect("fd"));
    let bytes = || {
        let mut bytes = vec![0; AREA_BYTES as usize];
        file.read_exact_at(&mut bytes, 0).expect("readable");
        bytes
    };
    area.unlock(ZERO, &seed(0x5a));
    assert!(bytes().windows(64).any(|part| part == [0x5a; 64]));
    area.lock();
    assert!(bytes()[64..].iter().all(|byte| *byte == 0));
}

#[test]
fn secret_memory_cannot_be_read_through_its_descriptor() {
    let area = match SeedArea::create_as(AreaKind::Secret) {
        Ok(area) => area,
        Err(error) => {
            // Then the other kind is what is made.
            let area = SeedArea::create().expect("made");
            assert_eq!(area.kind(), AreaKind::Sealed);
            skip!("memfd_secret", "{error}");
        }
    };
    assert_eq!(SeedArea::create().expect("made").kind(), AreaKind::Secret);
    area.unlock(ZERO, &seed(1));
    let fd = area.fd().expect("shared").try_clone_to_owned();
    let mut file = File::from(fd.expect("a descriptor"));
    assert!(file.read(&mut [0; 64]).is_err());
    assert!(file.read_at(&mut [0; 64], 0).is_err());
    assert!(file.set_len(2 * AREA_BYTES).is_err());
}

/// What the kernel says of the mapping of an area.
fn flags_of(area: &SeedArea) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("the kernel has them");
    let begin = format!("{:x}-", std::ptr::from_ref(area.words()).addr());
    let own = maps.lines().skip_while(|line| !line.starts_with(&begin));
    let flags = own.filter_map(|line| line.strip_prefix("VmFlags: ")).next();
    flags.expect("the area is mapped").to_owned()
}

#[test]
fn no_area_is_in_a_core_dump_or_in_a_copy_of_the_process() {
    let areas = shared();
    for area in &areas {
        let flags = flags_of(area);
        let has = |flag: &str| flags.split(' ').any(|word| word == flag);
        // Left out of dumps, not copied by fork, locked in memory.
        assert!(
            has("dd") && has("dc") && has("lo"),
            "{:?}: {flags}",
            area.kind()
        );
    }
}

#[test]
fn the_size_of_a_memfd_stays() {
    let area = SeedArea::create_as(AreaKind::Sealed).expect("made");
    let fd = area.fd().expect("shared").try_clone_to_owned();
    let file = File::from(fd.expect("a descriptor"));
    assert!(file.set_len(0).is_err() && file.set_len(2 * AREA_BYTES).is_err());
}

#[test]
fn other_descriptors_are_no_areas() {
    let file: OwnedFd = tempfile::tempfile().expect("a file").into();
    let (read, _write) = pipe().expect("a pipe");
    let null: OwnedFd = File::open("/dev/null").expect("a device").into();
    for fd in [file, read.into(), null] {
        let error = SeedArea::from_fd(fd).expect_err("no area");
        assert!(matches!(error, AreaError::NotAnArea(_)), "{error}");
    }
    let large = sys::sealed_memfd(2 * AREA_BYTES).expect("made");
    let error = SeedArea::from_fd(large).expect_err("too large");
    assert!(matches!(error, AreaError::NotAnArea(_)), "{error}");
    let empty = sys::sealed_memfd(AREA_BYTES).expect("made");
    let error = SeedArea::from_fd(empty).expect_err("zeroes");
    assert!(matches!(error, AreaError::NotAnArea(_)), "{error}");
}

#[test]
fn every_changed_word_is_refused_or_reads_as_nothing() {
    for area in shared() {
        let words = area.words();
        area.unlock(ZERO, &seed(7)).expect("unlocked");
        let head = [
            &words.magic,
            &words.layout,
            &words.kind,
            &words.device,
            &words.versions,
        ];
        for (at, word) in head.into_iter().enumerate() {
            let good = word.swap(u64::MAX, Ordering::AcqRel);
            let error = again(&area).expect_err("changed");
            let newer = matches!(error, AreaError::Newer(u64::MAX));
            let other = matches!(error, AreaError::NotAnArea(_));
            assert!(newer && at == 1 || other && at != 1, "{at}: {error}");
            word.store(good, Ordering::Release);
        }
        for word in words.seed.iter().chain(&words.check) {
            word.fetch_xor(1 << 40, Ordering::AcqRel);
            assert!(area.read(ZERO).is_none());
            word.fetch_xor(1 << 40, Ordering::AcqRel);
        }
        // Any state is locked or as it was, and no call waits for ever.
        for state in [1, 3, u64::MAX, u64::MAX - 1, u64::MAX - 2] {
            words.state.store(state, Ordering::Release);
            assert!(state & 3 != 2 || area.read(ZERO).is_some());
            assert!(state & 3 == 2 || area.read(ZERO).is_none());
        }
        assert!(area.lock());
        assert!(area.unlock(ZERO, &seed(7)).is_some());
    }
}

#[test]
fn a_process_that_died_while_it_wrote_is_followed() {
    let area = SeedArea::create().expect("made");
    let words = area.words();
    words.state.store(5 << 2 | 1, Ordering::Release);
    words.seed[3].store(9, Ordering::Release);
    assert!(area.read(ZERO).is_none());
    assert_eq!(area.unlock(ZERO, &seed(3)), Some(6));
    words.state.store(6 << 2 | 1, Ordering::Release);
    assert!(area.lock());
    assert!(
        words
            .seed
            .iter()
            .all(|word| word.load(Ordering::Acquire) == 0)
    );
}

#[test]
fn a_seed_is_of_its_device() {
    let area = SeedArea::create().expect("made");
    let third = PathIndex::new(3).expect("small");
    area.set_device(third).expect("locked");
    assert_eq!(area.device(), third);
    let vault = Vault::over(area, None);
    assert_eq!(vault.device(), third);
    let words = Entropy::from_bytes(&[1; 16]).expect("16 bytes");
    vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
    assert!(matches!(
        vault.area().set_device(ZERO),
        Err(AreaError::Open)
    ));
    assert!(vault.area().read(ZERO).is_none());
}

#[test]
fn readers_see_a_whole_seed_or_none_while_others_lock_and_unlock() {
    let area = SeedArea::create().expect("made");
    let done = AtomicBool::new(false);
    let writer = |own: SeedArea, byte: u8| {
        for _ in 0..2000 {
            own.unlock(ZERO, &seed(byte));
            own.lock();
        }
    };
    let (mut whole, mut reads) = (0_u64, 0_u64);
    thread::scope(|scope| {
        let writers = [1, 2].map(|byte| {
            let own = again(&area).expect("an area");
            scope.spawn(move || writer(own, byte))
        });
        scope.spawn(|| {
            for writer in writers {
                writer.join().expect("it ends");
            }
            done.store(true, Ordering::Release);
        });
        // Once at least: on a busy machine the writers may be done before this thread runs.
        loop {
            reads += 1;
            if let Some(open) = area.read(ZERO) {
                let first = open.seed.expose()[0];
                assert_eq!(open.seed, seed(first), "half of a seed");
                whole += 1;
            }
            if done.load(Ordering::Acquire) {
                break;
            }
        }
    });
    assert!(whole <= reads && reads > 0);
    area.lock();
    assert!(area.read(ZERO).is_none());
}

#[test]
fn two_vaults_over_one_area_are_one() {
    let area = SeedArea::create().expect("made");
    let node = Vault::over(again(&area).expect("an area"), None);
    let init = Vault::over(area, None);
    assert_eq!(node.notice(), None);
    let words = Entropy::from_bytes(&[1; 16]).expect("16 bytes");
    let epoch = init.unlock(&words, &SecretStr::empty()).expect("unlocked");
    let state = VaultState::Unlocked { epoch };
    let noticed = |state, revoked| Some(StateChange { state, revoked });
    assert_eq!(node.notice(), noticed(state, false));
    assert_eq!((node.notice(), init.notice()), (None, None));
    let key = node.signer(KeyPurpose::NodeIdentity).expect("open");
    let own = init.signer(KeyPurpose::NodeIdentity).expect("open");
    assert_eq!(key.public(), own.public());
    let version = KeyVersion::new(5).expect("a version");
    let versions = KeyVersions {
        current: version,
        oldest: version,
    };
    init.use_versions(versions).expect("in order");
    assert_eq!(node.versions(), versions);

    // What the node locks is locked for both; keys that were handed out go on.
    node.lock();
    assert_eq!(init.state(), VaultState::Locked);
    assert_eq!(init.notice(), noticed(VaultState::Locked, false));
    assert!(key.sign(b"x").is_ok() && own.sign(b"x").is_ok());
    assert!(init.signer(KeyPurpose::SshHost).is_err());

    // A hard lock of one takes the keys of the other at once.
    init.lock_hard();
    assert!(key.sign(b"x").is_err() && own.sign(b"x").is_err());
    assert_eq!(node.notice(), noticed(VaultState::Locked, true));
    init.unlock(&words, &SecretStr::empty()).expect("unlocked");
    assert!(key.sign(b"x").is_err());
    assert!(
        node.signer(KeyPurpose::NodeIdentity)
            .expect("open")
            .sign(b"x")
            .is_ok()
    );
}
