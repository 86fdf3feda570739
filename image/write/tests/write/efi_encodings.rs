//! Signatures of EFI programs that firmware refuses, made from ones that hold. This takes no key: the bytes are in no hash.

use std::fs;

use alknet_image_write::authenticode::{AuthenticodeError, sign};

use crate::efi::{EfiOwner, accepts, directory_of};
use crate::support::{InputFolder, run, text};

const SEQUENCE: u8 = 0x30;
/// Where the parts of a signature are, as the numbers of the elements from the outermost one on (RFC 2315 section 9).
const INDIRECT_DATA: &[usize] = &[1, 0, 2, 1, 0];
const CERTIFICATES: &[usize] = &[1, 0, 3];
const SIGNER: &[usize] = &[1, 0, 4, 0];
/// The tag of attributes that no key signs, and the name of a time stamp among them.
const UNSIGNED: u8 = 0xa1;
const TIME_STAMP: &[u8] = b"\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x03\x03\x01";

/// A signed program: what is before the table of its signatures, and its only signature.
struct SignedProgram {
    before: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedProgram {
    fn split(program: &[u8]) -> Self {
        let start = number(program, directory_of(program));
        let length = number(program, start);
        Self {
            before: program[..start].to_vec(),
            signature: program[start + 8..start + length].to_vec(),
        }
    }

    /// The program with another table, of which its header gives the size.
    fn with_table(&self, table: &[u8]) -> Vec<u8> {
        let mut program = [&self.before[..], table].concat();
        let at = directory_of(&program) + 4;
        program[at..at + 4].copy_from_slice(&(table.len() as u32).to_le_bytes());
        program
    }

    fn with_signature(&self, signature: &[u8]) -> Vec<u8> {
        self.with_table(&padded(entry(signature, 2)))
    }

    /// The program with one element of its signature encoded again from its tag and content.
    fn with_changed(&self, path: &[usize], change: &dyn Fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
        self.with_signature(&changed(&self.signature, path, change))
    }

    /// The program with more bytes at the end of an element.
    fn with_appended(&self, path: &[usize], more: &[u8]) -> Vec<u8> {
        self.with_changed(path, &|tag, content| {
            element(tag, &[content, more].concat())
        })
    }

    /// The program with a time stamp of this content.
    fn with_time_stamp(&self, value: &[u8]) -> Vec<u8> {
        let attribute = [TIME_STAMP, &element(0x31, value)].concat();
        let attributes = element(UNSIGNED, &element(SEQUENCE, &attribute));
        self.with_appended(SIGNER, &attributes)
    }
}

fn number(program: &[u8], at: usize) -> usize {
    let digits = program[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(digits) as usize
}

/// An entry of the table, without its padding.
fn entry(signature: &[u8], kind: u16) -> Vec<u8> {
    let length = (8 + signature.len()) as u32;
    let revision = 0x0200_u16;
    let head = [&length.to_le_bytes()[..], &revision.to_le_bytes()].concat();
    [&head[..], &kind.to_le_bytes(), signature].concat()
}

fn padded(mut entry: Vec<u8>) -> Vec<u8> {
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}

/// An element whose length is in the shortest form.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let digits = content.len().to_be_bytes();
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    match content.len() {
        short @ 0..=127 => [&[tag, short as u8][..], content].concat(),
        _ => long_element(tag, content, digits.len() - zeros),
    }
}

/// An element whose length has so many bytes, leading zeros among them.
fn long_element(tag: u8, content: &[u8], length_bytes: usize) -> Vec<u8> {
    let digits = content.len().to_be_bytes();
    let digits = &digits[digits.len() - length_bytes..];
    [&[tag, 0x80 | length_bytes as u8][..], digits, content].concat()
}

/// Tag, content, and what is behind the element.
fn split(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (head, length) = match der[1] {
        short @ 0..=127 => (2, usize::from(short)),
        long => {
            let head = 2 + usize::from(long & 0x7f);
            let digits = der[2..head].iter();
            (
                head,
                digits.fold(0, |sum, digit| sum << 8 | usize::from(*digit)),
            )
        }
    };
    let (content, behind) = der[head..].split_at(length);
    (der[0], content, behind)
}

/// The element with the one at `path` encoded again, and all lengths around it.
fn changed(der: &[u8], path: &[usize], change: &dyn Fn(u8, &[u8]) -> Vec<u8>) -> Vec<u8> {
    let (tag, content, _) = split(der);
    let Some((nth, path)) = path.split_first() else {
        return change(tag, content);
    };
    let mut behind = content;
    for _ in 0..*nth {
        behind = split(behind).2;
    }
    let before = &content[..content.len() - behind.len()];
    let after = split(behind).2;
    let new = changed(behind, path, change);
    element(tag, &[before, &new, after].concat())
}

/// Runs `check` for programs that sbsign and this project signed, with RSA and ECDSA.
fn each_signed(check: &dyn Fn(&EfiOwner, &SignedProgram)) {
    let folder = InputFolder::new();
    let loader = folder.inputs.loader.clone().expect("there is one");
    let program = fs::read(&loader).expect("readable");
    for owner in [EfiOwner::rsa(), EfiOwner::ecdsa()] {
        let (key, pem, theirs) = (
            owner.path("key.pem"),
            owner.path("cert.pem"),
            owner.path("theirs.efi"),
        );
        let options = ["--key", text(&key), "--cert", text(&pem)];
        let files = ["--output", text(&theirs), text(&loader)];
        run("sbsign", &[&options[..], &files].concat());
        let ours = sign(&program, &owner.signer()).expect("a program");
        for signed in [fs::read(theirs).expect("written"), ours] {
            let parts = SignedProgram::split(&signed);
            assert!(parts.with_signature(&parts.signature) == signed);
            assert!(parts.with_changed(SIGNER, &element) == signed);
            check(&owner, &parts);
        }
    }
}

/// Whether sbverify accepts the program.
fn is_accepted(owner: &EfiOwner, program: &[u8]) -> bool {
    let tried = owner.path("tried.efi");
    fs::write(&tried, program).expect("writable");
    accepts(&owner.path("cert.pem"), &tried)
}

/// The attack: another person cuts the padding off the end of a signed program, or lengthens the table. EDK2 refuses a
/// table that does not end with an entry and its padding.
#[test]
fn a_table_that_does_not_end_with_its_signatures_does_not_hold() {
    each_signed(&|owner, signed| {
        let certificate = owner.certificate();
        let refusal = |table: &[u8]| {
            let refused = certificate.verify(&signed.with_table(table));
            refused.expect_err("firmware refuses it").to_string()
        };
        // An entry that needs padding. Some programs count a part of it as that of the signature.
        let mut signature = signed.signature.clone();
        if signature.len().is_multiple_of(8) {
            signature.push(0);
        }
        let cut = entry(&signature, 2);
        let whole = padded(cut.clone());
        let verified = certificate.verify(&signed.with_table(&whole));
        verified.expect("the padding is there");
        let uneven = "do not end with their table";
        assert!(refusal(&cut).contains(uneven));
        assert!(refusal(&whole[..whole.len() - 1]).contains(uneven));
        let long = [0x1000_u32.to_le_bytes(), [0, 2, 2, 0]].concat();
        for more in [&[0; 8][..], &[0; 4], &long, &cut[..8]] {
            let said = refusal(&[&whole[..], more].concat());
            assert!(said.contains(uneven), "{more:?}: {said}");
        }
        let other = [&whole[..], &padded(entry(b"of another kind", 0x0ef1))].concat();
        assert!(refusal(&other).contains("another kind"));
    });
}

/// The attack: another person adds to the certificates, or to the attributes that no key signs, what OpenSSL in firmware
/// does not read, or writes a length in a longer form. sbverify reads signatures by OpenSSL, too.
#[test]
fn a_signature_that_openssl_does_not_read_does_not_hold() {
    each_signed(&|owner, signed| {
        let certificate = owner.certificate();
        // What follows is refused for its bytes, and not for the place.
        let stamped = signed.with_time_stamp(&element(SEQUENCE, b"\xff"));
        certificate.verify(&stamped).expect("OpenSSL reads it");
        assert!(is_accepted(owner, &stamped));
        let attack = |name: &str, program: &[u8]| {
            let refused = certificate.verify(program);
            assert!(
                matches!(refused, Err(AuthenticodeError::OtherSignature)),
                "{name}: {refused:?}"
            );
            assert!(!is_accepted(owner, program), "{name}");
        };
        let empty = element(SEQUENCE, &[]);
        attack("certificate", &signed.with_appended(CERTIFICATES, &empty));
        let attributes = element(UNSIGNED, b"\x04\x00");
        attack("attributes", &signed.with_appended(SIGNER, &attributes));
        // A number without a byte.
        attack("value", &signed.with_time_stamp(b"\x02\x00"));
        let longer = |tag: u8, content: &[u8]| long_element(tag, content, 3);
        attack("length", &signed.with_changed(INDIRECT_DATA, &longer));
    });
}

/// The attack: the same with what OpenSSL reads and EDK2 does not: it expects the lengths before the name of the digest
/// to have two bytes, and so a signature of at most 64 KiB.
#[test]
fn a_signature_that_edk2_alone_refuses_does_not_hold() {
    each_signed(&|owner, signed| {
        let certificate = owner.certificate();
        let long = element(SEQUENCE, &[0; 1 << 16]);
        let outermost = |tag: u8, content: &[u8]| long_element(tag, content, 3);
        for program in [
            signed.with_time_stamp(&long),
            signed.with_changed(&[], &outermost),
        ] {
            let refused = certificate.verify(&program);
            assert!(
                matches!(refused, Err(AuthenticodeError::OtherSignature)),
                "{refused:?}"
            );
        }
    });
}

/// The attack: another person places bytes behind the signature, within its entry, where no key signs them.
#[test]
fn a_signature_with_more_than_padding_behind_it_does_not_hold() {
    each_signed(&|owner, signed| {
        let certificate = owner.certificate();
        let verify = |more: &[u8]| {
            let longer = [&signed.signature[..], more].concat();
            certificate.verify(&signed.with_signature(&longer))
        };
        verify(&[0; 7]).expect("it is padding");
        for more in [&[0; 8][..], b"x"] {
            let refused = verify(more);
            assert!(
                matches!(refused, Err(AuthenticodeError::OtherSignature)),
                "{more:?}: {refused:?}"
            );
        }
    });
}

/// The attack: another person adds a signature. Firmware refuses the program if it cannot read one of its signatures, or
/// if one is by a forbidden key.
#[test]
fn a_foreign_signature_beside_the_owner_s_is_an_error() {
    let other = EfiOwner::rsa();
    each_signed(&|owner, signed| {
        let certificate = owner.certificate();
        let own = padded(entry(&signed.signature, 2));
        let program = sign(&plain(signed), &other.signer()).expect("a program");
        let foreign = padded(entry(&SignedProgram::split(&program).signature, 2));
        let unreadable = padded(entry(b"no signature", 2));
        for added in [&foreign, &unreadable] {
            for table in [[&own[..], added].concat(), [&added[..], &own].concat()] {
                let refused = certificate.verify(&signed.with_table(&table));
                assert!(
                    matches!(refused, Err(AuthenticodeError::ForeignSignature)),
                    "{refused:?}"
                );
            }
        }
        let twice = [&own[..], &own].concat();
        let twice = certificate.verify(&signed.with_table(&twice));
        twice.expect("both are the owner's");
    });
}

/// The program without its signature.
fn plain(signed: &SignedProgram) -> Vec<u8> {
    let mut program = signed.before.clone();
    let at = directory_of(&program);
    program[at..at + 8].fill(0);
    program
}
