use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn open() -> CapabilityGate {
    Arc::new(|| true)
}

/// Returns the message's length in place of a signature, so that a caller sees that it came from
/// here.
struct StampSigner;

impl CapabilitySigner for StampSigner {
    fn public(&self) -> [u8; 32] {
        [7; 32]
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        Ok([message.len() as u8; 64])
    }
}

/// As many bytes as there were.
struct PassthroughAead;

impl Aead for PassthroughAead {
    fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError> {
        Ok([name.as_bytes(), plain].concat())
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError> {
        let plain = sealed.strip_prefix(name.as_bytes());
        let plain = plain.ok_or(CapabilityError::NotOpened)?;
        Ok(Secret::new(plain.to_vec()))
    }
}

fn powers() -> [CapabilityBackend; 6] {
    [
        CapabilityBackend::Aead(Box::new(PassthroughAead)),
        CapabilityBackend::ApiKey {
            location: SecretLocation::Header,
            name: "x-api-key".to_owned(),
            key: secret("sk-1"),
        },
        CapabilityBackend::Basic {
            user: "Aladdin".to_owned(),
            password: secret("open sesame"),
        },
        CapabilityBackend::Bearer(secret("sk-2")),
        CapabilityBackend::Bytes(secret("raw")),
        CapabilityBackend::Signer(Box::new(StampSigner)),
    ]
}

#[test]
fn each_kind_does_what_it_is_for_and_nothing_else() {
    for (kind, power) in CapabilityKind::ALL.into_iter().zip(powers()) {
        let (one, filler) = capability("one", kind, open());
        filler.fill(power);
        assert_eq!(filler.vacancy(), None, "{kind}");
        let mut header = None;
        let authorized = one.authorize(&mut |_, name, value| {
            let value = String::from_utf8(value.to_vec()).expect("text");
            header = Some((name.to_owned(), value));
        });
        let expected = match kind {
            CapabilityKind::ApiKey => Some(("x-api-key", "sk-1")),
            // The example of RFC 7617.
            CapabilityKind::Basic => Some(("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            CapabilityKind::Bearer => Some(("authorization", "Bearer sk-2")),
            _ => None,
        };
        let wrong = CapabilityError::Kind { is: kind };
        match expected {
            Some((name, value)) => {
                assert_eq!(header, Some((name.to_owned(), value.to_owned())));
            }
            None => assert_eq!(authorized, Err(wrong)),
        }
        let signs = kind == CapabilityKind::Signer;
        assert_eq!(
            one.sign(b"abc"),
            if signs { Ok([3; 64]) } else { Err(wrong) }
        );
        assert_eq!(one.public(), if signs { Ok([7; 32]) } else { Err(wrong) });
        let lends = kind == CapabilityKind::Bytes;
        let lent = one.with_bytes(<[u8]>::len);
        assert_eq!(lent, if lends { Ok(3) } else { Err(wrong) });
        let seals = kind == CapabilityKind::Aead;
        assert_eq!(one.seal("a", b"b").ok(), seals.then(|| b"ab".to_vec()));
        let opened = one.open("a", b"ab").map(|it| it.expose().to_vec());
        assert_eq!(opened, if seals { Ok(b"b".to_vec()) } else { Err(wrong) });
    }
}

#[test]
fn an_operation_sees_its_own_and_no_others() {
    let (door, _) = capability("door", CapabilityKind::Bytes, open());
    let mine = Capabilities::new([door]);
    assert!(mine.get("door").is_ok());
    assert_eq!(mine.get("window").err(), Some(CapabilityError::NotGranted));
    let none = Capabilities::default();
    assert!(none.is_empty() && none.get("door").is_err());
}

#[test]
fn a_use_has_what_its_refresh_brings_and_takes() {
    let (one, filler) = capability("one", CapabilityKind::Bytes, open());
    let uses = AtomicUsize::new(0);
    let filler = Arc::new(filler);
    let own = Arc::downgrade(&filler);
    filler.before_use(move || {
        let filler = own.upgrade().expect("the test has it");
        match uses.fetch_add(1, Ordering::SeqCst) {
            0 => filler.fill(CapabilityBackend::Bytes(secret("first"))),
            1 => filler.fill(CapabilityBackend::Bytes(secret("second"))),
            _ => filler.empty(CapabilityError::Missing),
        }
    });
    let seen = || one.with_bytes(<[u8]>::to_vec);
    assert_eq!(seen(), Ok(b"first".to_vec()));
    assert_eq!(seen(), Ok(b"second".to_vec()));
    assert_eq!(seen(), Err(CapabilityError::Missing));
}

#[test]
fn a_lock_counts_at_once_and_what_was_there_is_gone() {
    let is_open = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_open);
    let gate: CapabilityGate = Arc::new(move || asked.load(Ordering::SeqCst));
    let (one, filler) = capability("one", CapabilityKind::Bytes, gate);
    let shared = one.clone();
    let fill = || filler.fill(CapabilityBackend::Bytes(secret("raw")));
    assert_eq!(
        one.with_bytes(|_| ()),
        Err(CapabilityError::Locked),
        "at first"
    );
    fill();
    assert_eq!(shared.with_bytes(|_| ()), Ok(()));
    // Another process locked the vault and did not empty the capability: its next use empties it.
    is_open.store(false, Ordering::SeqCst);
    assert_eq!(one.with_bytes(|_| ()), Err(CapabilityError::Locked));
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(filler.vacancy(), Some(CapabilityError::Locked));
    assert_eq!(one.with_bytes(|_| ()), Err(CapabilityError::Locked));
    fill();
    assert_eq!(one.with_bytes(|_| ()), Ok(()));
    for why in [CapabilityError::Missing, CapabilityError::NoVault] {
        filler.empty(why);
        assert_eq!(shared.with_bytes(|_| ()), Err(why));
    }
    filler.fill(CapabilityBackend::Bearer(secret("of another kind")));
    assert_eq!(one.with_bytes(|_| ()), Err(CapabilityError::Unusable));
}

/// Ambiguous, and so no program, as soon as the type can be shown or written.
#[test]
fn what_is_behind_can_be_neither_shown_nor_written_nor_copied() {
    trait CapabilityIsOpaque<Marker> {
        fn hidden() {}
    }
    impl<T: ?Sized> CapabilityIsOpaque<()> for T {}
    impl<T: ?Sized + fmt::Debug> CapabilityIsOpaque<u8> for T {}
    impl<T: ?Sized + Serialize> CapabilityIsOpaque<u16> for T {}
    impl<T: Clone> CapabilityIsOpaque<u32> for T {}
    <Secret as CapabilityIsOpaque<_>>::hidden();
    <CapabilityBackend as CapabilityIsOpaque<_>>::hidden();
    trait Unwritten<Marker> {
        fn unwritten() {}
    }
    impl<T: ?Sized> Unwritten<()> for T {}
    impl<T: ?Sized + Serialize> Unwritten<u16> for T {}
    <Capability as Unwritten<_>>::unwritten();
    <Capabilities as Unwritten<_>>::unwritten();
    <CapabilityFiller as Unwritten<_>>::unwritten();

    let (one, filler) = capability("openai", CapabilityKind::Bearer, open());
    filler.fill(CapabilityBackend::Bearer(secret("sk-hush")));
    let mine = Capabilities::new([one.clone()]);
    assert_eq!(format!("{one:?}"), "Capability(bearer)");
    assert_eq!(format!("{mine:?}"), "{\"openai\": Bearer}");
    assert_eq!(format!("{filler:?}"), "CapabilityFiller(bearer)");
}
