//! Secrets are not copied, shown or written by accident: checked when this file is compiled. Nor do they stay
//! on the stack of a thread that goes on.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::thread;

use alknet_vault::slots::{OpenAlkv, SeedKey};
use alknet_vault::{
    Ed25519Signer, Entropy, KeyPurpose, P256Signer, SecretArr, SecretBytes, SecretStr, Vault,
    VaultState, without_traces,
};

/// Does not compile if a type has the trait: then two implementations could be meant.
macro_rules! never {
    ($trait:path: $($type:ty),+) => {
        $(const _: fn() = || {
            trait Either<Which> {
                fn meant() {}
            }
            struct HasIt;
            impl<T: ?Sized> Either<()> for T {}
            impl<T: ?Sized + $trait> Either<HasIt> for T {}
            let _ = <$type as Either<_>>::meant;
        };)+
    };
}

never!(Clone: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, OpenAlkv);
never!(serde::Serialize: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, OpenAlkv);
never!(serde::Serialize: Vault, Ed25519Signer, P256Signer);
never!(std::fmt::Display: SecretArr<32>, SecretBytes, SecretStr, Entropy, SeedKey, Vault);

#[test]
fn what_is_shown_of_a_secret_says_nothing() {
    let words = Entropy::from_bytes(&[0x41; 16]).expect("16 bytes");
    let shown = format!(
        "{words:?} {:?} {:?}",
        words.phrase(),
        SecretArr::copy_of(&[0x41; 4])
    );
    assert_eq!(shown, "Entropy(..) SecretStr(..) SecretArr(..)");
}

/// So many bytes of a secret in a row are no accident.
const TELLING: usize = 8;

/// The stack below a place of a thread, down to where its memory begins.
fn stack_below(place: usize) -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/maps").expect("this process has memory");
    let begin = maps.lines().find_map(|line| {
        let (range, _) = line.split_once(' ')?;
        let (begin, end) = range.split_once('-')?;
        let [begin, end] = [begin, end].map(|text| usize::from_str_radix(text, 16).ok());
        (begin?..end?).contains(&place).then_some(begin?)
    });
    let begin = begin.expect("the place is somewhere");
    let mut bytes = vec![0; place - begin];
    let memory = File::open("/proc/self/mem").expect("this process may read itself");
    let read = memory.read_exact_at(&mut bytes, begin as u64);
    read.expect("it is there");
    bytes
}

/// Does `work` where nothing that the thread does afterwards overwrites what it leaves.
#[inline(never)]
fn far_below(work: impl FnOnce()) {
    let room = black_box([0_u8; 16 << 10]);
    work();
    black_box(&room);
}

/// A thread that did `work` with a vault and waits: what is on its stack.
fn stack_after(work: fn(&Vault)) -> Vec<u8> {
    let vault = Vault::locked();
    let unlocked = vault.unlock(
        &Entropy::from_bytes(&[0; 16]).expect("16 bytes"),
        &SecretStr::from("TREZOR"),
    );
    unlocked.expect("it was locked");
    let (place, at) = channel();
    let (go_on, looked) = channel::<()>();
    let thread = thread::spawn(move || {
        far_below(|| work(&vault));
        let here = 0_u8;
        let _ = place.send(std::ptr::from_ref(&here).addr());
        let _ = looked.recv();
    });
    let stack = stack_below(at.recv().expect("it works"));
    drop(go_on);
    thread.join().expect("it works");
    stack
}

/// The seed of the first test vector of BIP39.
#[test]
fn a_thread_that_asked_for_the_state_or_a_key_keeps_nothing_of_the_seed() {
    const SEED: &str = "c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e53495531f09a6987599d18264c1e1c92f2cf141630c7a3c4ab7c81b2f001698e7463b04";
    let seed = data_encoding::HEXLOWER.decode(SEED.as_bytes());
    let seed = seed.expect("it is hexadecimal");
    type Work = fn(&Vault);
    let works: [(&str, Work); 3] = [
        ("the state", |vault| {
            assert_ne!(vault.state(), VaultState::Locked)
        }),
        ("what happened", |vault| assert!(vault.notice().is_none())),
        ("a key", |vault| {
            vault.signer(KeyPurpose::NodeIdentity).expect("it is open");
        }),
    ];
    for (what, work) in works {
        let stack = stack_after(work);
        for piece in seed.chunks_exact(TELLING) {
            let place = stack.windows(TELLING).rposition(|bytes| bytes == piece);
            let below = place.map(|at| stack.len() - at);
            assert_eq!(
                below, None,
                "{what} leaves a piece of the seed so far below"
            );
        }
    }
}

/// The search finds what work leaves, and `without_traces` leaves nothing of it.
#[test]
fn what_work_leaves_on_a_stack_is_overwritten() {
    #[inline(never)]
    fn leave(_: &Vault) {
        let bytes = black_box([0x5a_u8; 4096]);
        black_box(&bytes);
    }
    let is_left = |stack: Vec<u8>| stack.windows(64).any(|bytes| bytes == [0x5a; 64]);
    assert!(is_left(stack_after(leave)));
    let overwritten = |vault: &Vault| without_traces::<{ 64 << 10 }, _>(|| leave(vault));
    assert!(!is_left(stack_after(overwritten)));
}
