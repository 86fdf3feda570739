//! tpm2-tools do the same with the same objects.

use alknet_tpm::{ExpectedPcrs, TpmError, TpmPin};
use alknet_vault::slots::Tpm2Params;

use crate::machine::{SwtpmMachine, hex};
use crate::{choice, kek, pin};

const ATTRIBUTES: &str =
    "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";

/// The storage key of the guidance: both coordinates of the template are 32 zero bytes. The tool
/// takes them as they lie in its memory, with room for the longest coordinate there is.
fn storage_key(machine: &SwtpmMachine, more: &[&str]) {
    let coordinate = [[32, 0].as_slice(), &[0; 128]].concat();
    let unique = [coordinate.as_slice(), &coordinate].concat();
    std::fs::write(machine.path("unique"), unique).expect("a writable directory");
    let usual = [
        "-C",
        "o",
        "-g",
        "sha256",
        "-G",
        "ecc256:aes128cfb",
        "-a",
        ATTRIBUTES,
    ];
    let files = ["-u", "unique", "-c", "primary"];
    let args = [usual.as_slice(), &files, more].concat();
    machine.tool("tpm2_createprimary", &args);
}

fn store(machine: &SwtpmMachine, slot: &Tpm2Params) {
    // The name of the storage key follows the public part.
    let length = 2 + usize::from(u16::from_be_bytes([slot.public()[0], slot.public()[1]]));
    std::fs::write(machine.path("public"), &slot.public()[..length]).expect("writable");
    std::fs::write(machine.path("private"), slot.private()).expect("writable");
}

fn load(machine: &SwtpmMachine) {
    storage_key(machine, &[]);
    machine.tool(
        "tpm2_load",
        &[
            "-C", "primary", "-u", "public", "-r", "private", "-c", "object",
        ],
    );
    machine.tool("tpm2_flushcontext", &["-t"]);
}

/// Unseals by the policy, as a person would.
fn unseal(machine: &SwtpmMachine, pin: Option<&str>) -> Result<Vec<u8>, String> {
    machine.tool(
        "tpm2_startauthsession",
        &["--policy-session", "-S", "session"],
    );
    machine.tool("tpm2_policypcr", &["-S", "session", "-l", "sha256:7,11,12"]);
    let auth = match pin {
        Some(pin) => {
            machine.tool("tpm2_policyauthvalue", &["-S", "session"]);
            format!("session:session+{pin}")
        }
        None => "session:session".to_owned(),
    };
    let out = machine.try_tool("tpm2_unseal", &["-c", "object", "-p", &auth]);
    machine.flush();
    if out.status.success() {
        Ok(out.stdout)
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

#[test]
fn tpm2_unseal_opens_what_we_sealed_and_not_after_another_boot() {
    for typed in [None, Some("1234")] {
        let machine = SwtpmMachine::booted();
        let secret = kek();
        let with = typed.map(pin);
        let slot = machine
            .tpm()
            .seal(&secret, &choice(), ExpectedPcrs::Current, with.as_ref())
            .expect("sealed");
        store(&machine, &slot);
        load(&machine);
        let described = machine.tool("tpm2_readpublic", &["-c", "object"]);
        machine.flush();
        assert!(described.contains("value: keyedhash"), "{described}");
        let policy = format!("authorization policy: {}", hex(slot.policy()));
        assert!(described.contains(&policy), "{described}");
        assert_eq!(
            unseal(&machine, typed).as_deref(),
            Ok(secret.expose().as_slice())
        );
        if typed.is_some() {
            let wrong = unseal(&machine, Some("4321")).expect_err("a wrong PIN");
            assert!(wrong.contains("authorization"), "{wrong}");
        }
        machine.extend(11, &[3; 32]);
        let refused = unseal(&machine, typed).expect_err("another boot");
        assert!(refused.contains("policy"), "{refused}");
        let ours: Result<_, TpmError> = machine.tpm().unseal(&slot, with.as_ref());
        assert!(matches!(ours, Err(TpmError::WrongPcrs { .. })), "{ours:?}");
    }
}

#[test]
fn pcrs_are_what_tpm2_pcrread_reads() {
    let machine = SwtpmMachine::booted();
    let values = machine
        .tpm()
        .pcr_values(&[0, 4, 7, 11, 23])
        .expect("readable");
    assert_eq!(values.len(), 5);
    let listed = machine.tool("tpm2_pcrread", &["sha256:0,4,7,11,23"]);
    let listed = listed.to_lowercase();
    for (pcr, value) in values {
        let line = listed
            .lines()
            .find(|line| line.trim().starts_with(&format!("{pcr} ")))
            .or_else(|| {
                listed
                    .lines()
                    .find(|line| line.trim().starts_with(&format!("{pcr}:")))
            })
            .expect("is listed");
        assert!(line.contains(&hex(&value)), "{line}");
    }
}

#[test]
fn a_storage_key_that_was_left_in_the_tpm_is_used_even_without_the_owner() {
    let machine = SwtpmMachine::booted();
    let secret = kek();
    let seal = || {
        machine
            .tpm()
            .seal(&secret, &choice(), ExpectedPcrs::Current, None)
    };
    let slot = seal().expect("sealed");
    storage_key(&machine, &[]);
    machine.tool(
        "tpm2_evictcontrol",
        &["-C", "o", "-c", "primary", "0x81000001"],
    );
    machine.flush();
    machine.tool("tpm2_changeauth", &["-c", "o", "owner's"]);
    assert_eq!(machine.tpm().unseal(&slot, None).expect("unsealed"), secret);
    machine.assert_clean();
    let refused = seal();
    assert!(
        matches!(refused, Err(TpmError::OwnerPassword)),
        "{refused:?}"
    );

    let gone = ["-C", "o", "-c", "0x81000001", "-P", "owner's"];
    machine.tool("tpm2_evictcontrol", &gone);
    let refused = machine.tpm().unseal(&slot, None);
    assert!(
        matches!(refused, Err(TpmError::OwnerPassword)),
        "{refused:?}"
    );
}

#[test]
fn a_key_with_a_password_or_another_one_at_its_place_does_not_matter() {
    for more in [["-p", "theirs"].as_slice(), &["-C", "e"]] {
        let machine = SwtpmMachine::booted();
        let secret = kek();
        let no_pin: Option<&TpmPin> = None;
        let slot = machine
            .tpm()
            .seal(&secret, &choice(), ExpectedPcrs::Current, no_pin)
            .expect("sealed");
        storage_key(&machine, more);
        machine.tool(
            "tpm2_evictcontrol",
            &["-C", "o", "-c", "primary", "0x81000001"],
        );
        machine.flush();
        assert_eq!(machine.tpm().unseal(&slot, None).expect("unsealed"), secret);
        machine.assert_clean();
    }
}
