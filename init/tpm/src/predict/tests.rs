use proptest::prelude::*;

use super::*;

const OPTIONAL: usize = 0x58;
const HEADERS: usize = 0x400;

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A program of these sections, with 512 bytes of granularity.
fn program(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = vec![0; HEADERS];
    put(&mut out, 0x3c, &0x40_u32.to_le_bytes());
    put(&mut out, 0x40, b"PE\0\0");
    put(&mut out, 0x46, &(sections.len() as u16).to_le_bytes());
    put(&mut out, 0x54, &240_u16.to_le_bytes());
    put(&mut out, OPTIONAL, &0x20b_u16.to_le_bytes());
    put(&mut out, OPTIONAL + 60, &(HEADERS as u32).to_le_bytes());
    put(&mut out, OPTIONAL + 108, &16_u32.to_le_bytes());
    for (index, (name, content)) in sections.iter().enumerate() {
        let at = OPTIONAL + 240 + index * 40;
        let start = out.len();
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
        let raw_bytes = out.len() - start;
        put(&mut out, at, name.as_bytes());
        put(&mut out, at + 8, &(content.len() as u32).to_le_bytes());
        put(&mut out, at + 16, &(raw_bytes as u32).to_le_bytes());
        put(&mut out, at + 20, &(start as u32).to_le_bytes());
    }
    out
}

const MAGIC_257: &[u8] = b"#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####";

fn uki(extra: &[(&str, &[u8])]) -> Vec<u8> {
    let kernel = program(&[(".text", b"kernel")]);
    let mut sections = vec![
        (".sdmagic", MAGIC_257),
        (".osrel", b"ID=alknet\n"),
        (".cmdline", b"quiet\0"),
        (".linux", kernel.as_slice()),
    ];
    sections.extend_from_slice(extra);
    program(&sections)
}

#[test]
fn the_order_of_sections_is_the_stubs_and_padding_does_not_count() {
    let kernel = program(&[(".text", b"kernel")]);
    let mut pcr = PredictedPcr::START;
    for event in [
        b".linux\0".as_slice(),
        &kernel,
        b".osrel\0",
        b"ID=alknet\n",
        b".cmdline\0",
        b"quiet\0",
        b".uname\0",
        b"6.12",
    ] {
        pcr = pcr.measure(event);
    }
    assert_eq!(predict_pcr11(&uki(&[(".uname", b"6.12")])), Ok(pcr.0));
    assert_ne!(predict_pcr11(&uki(&[(".uname", b"6.13")])), Ok(pcr.0));
    let empty: (&str, &[u8]) = (".splash", b"");
    assert_eq!(
        predict_pcr11(&uki(&[(".uname", b"6.12"), empty])),
        Ok(pcr.0)
    );
}

#[test]
fn what_the_machine_decides_and_other_stubs_are_refused() {
    let refused = |uki: &[u8]| {
        let error = predict_pcr11(uki).expect_err("must be refused");
        assert!(matches!(error, PredictError::Unpredictable(_)), "{error}");
    };
    for name in CHOSEN {
        refused(&uki(&[(name, b"x")]));
    }
    refused(&program(&[(".linux", b"x")]));
    refused(&program(&[(".sdmagic", b"systemd-stub 2570")]));
    refused(&program(&[(".sdmagic", b"systemd-stub 252.39-1")]));
}

#[test]
fn a_signature_changes_nothing_and_every_other_byte_does() {
    let plain = uki(&[]);
    let before = authenticode(&plain).expect("a program");
    let mut signed = plain.clone();
    put(&mut signed, OPTIONAL + 64, &[1, 2, 3, 4]);
    let entry = OPTIONAL + 112 + 4 * 8;
    put(&mut signed, entry, &(plain.len() as u32).to_le_bytes());
    put(&mut signed, entry + 4, &8_u32.to_le_bytes());
    signed.extend_from_slice(&[9; 8]);
    assert_eq!(authenticode(&signed), Ok(before));

    let mut longer = plain.clone();
    longer.push(0);
    assert_ne!(authenticode(&longer), Ok(before));
    for at in [0, HEADERS - 1, HEADERS, plain.len() - 1] {
        let mut changed = plain.clone();
        changed[at] ^= 1;
        assert_ne!(authenticode(&changed), Ok(before), "{at}");
    }
}

#[test]
fn what_firmware_tried_before_is_found_and_used_for_the_next_image() {
    let (now, next) = (uki(&[(".uname", b"1")]), uki(&[(".uname", b"2")]));
    let loader = program(&[(".text", b"loader")]);
    let with = |image: &[u8], failed| {
        let [image, kernel] = booted(image).expect("an image");
        predict_pcr4(failed, &[&loader, image, kernel]).expect("predictable")
    };
    let [image, kernel] = booted(&now).expect("an image");
    let programs = [loader.as_slice(), image, kernel];
    for failed in [0, 1, FAILED_OPTIONS_MAX] {
        let found = failed_options(&with(&now, failed), &programs);
        assert_eq!(found, Ok(Some(failed)));
        assert_eq!(failed_options(&with(&next, failed), &programs), Ok(None));
    }
    let values = [with(&now, 0), with(&now, 1), with(&next, 0)];
    assert!(values[0] != values[1] && values[0] != values[2]);
}

#[test]
fn an_update_is_predicted_from_what_runs() {
    let (running, next) = (uki(&[(".uname", b"1")]), uki(&[(".uname", b"2")]));
    let loader = program(&[(".text", b"loader")]);
    let loaders = [loader.as_slice()];
    let (loaders, running, next) = (&loaders, running.as_slice(), next.as_slice());
    let update = ProgramUpdate {
        loaders,
        running,
        next,
    };
    let pcr_4 = |failed, image| {
        let [image, kernel] = booted(image).expect("an image");
        predict_pcr4(failed, &[&loader, image, kernel]).expect("predictable")
    };
    let pcr_11 = predict_pcr11(next).expect("predictable");
    let now = PcrValues::from([(4, pcr_4(2, running)), (7, [7; 32]), (12, [0; 32])]);
    let measured = update.predict(&PcrChoice::measured(), &now);
    let expected = PcrValues::from([(4, pcr_4(2, next)), (11, pcr_11), (12, [0; 32])]);
    assert_eq!(measured, Ok(expected));
    let enforced = update.predict(&PcrChoice::enforced(), &now);
    assert_eq!(enforced, Ok(PcrValues::from([(11, pcr_11), (12, [0; 32])])));
    let with = |pcr_12| PcrValues::from([(4, pcr_4(2, running)), (12, pcr_12)]);
    assert!(
        update
            .predict(&PcrChoice::measured(), &with([0; 32]))
            .is_ok()
    );
    let no_pcr_12 = PcrValues::from([(4, pcr_4(2, running))]);
    let other_pcr_4 = PcrValues::from([(4, pcr_4(2, next)), (12, [0; 32])]);
    for other in [PcrValues::new(), no_pcr_12, other_pcr_4, with([1; 32])] {
        let refused = update.predict(&PcrChoice::measured(), &other);
        assert!(matches!(refused, Err(PredictError::Unpredictable(_))));
    }
    for other in [PcrValues::new(), with([1; 32])] {
        let refused = update.predict(&PcrChoice::enforced(), &other);
        assert!(matches!(refused, Err(PredictError::Unpredictable(_))));
    }
}

#[test]
fn limits_hold_on_both_sides() {
    let small = program(&[]);
    let programs = vec![small.as_slice(); BOOTED_PROGRAMS_MAX + 1];
    let most = &programs[..BOOTED_PROGRAMS_MAX];
    assert!(predict_pcr4(FAILED_OPTIONS_MAX, most).is_ok());
    assert!(predict_pcr4(FAILED_OPTIONS_MAX + 1, most).is_err());
    assert_eq!(predict_pcr4(0, &programs), Err(PredictError::TooMany(9)));
    assert_eq!(predict_pcr4(0, &[]), Err(PredictError::TooMany(0)));
    let mut many = small.clone();
    put(&mut many, 0x46, &(PE_SECTIONS_MAX as u16 + 1).to_le_bytes());
    assert_eq!(authenticode(&many), Err(PredictError::TooManySections(97)));
}

#[test]
fn a_section_longer_in_memory_than_in_the_file_is_refused() {
    let mut long = uki(&[]);
    put(&mut long, OPTIONAL + 240 + 40 + 8, &513_u32.to_le_bytes());
    assert!(matches!(predict_pcr11(&long), Err(PredictError::Form(_))));
}

proptest! {
    #[test]
    fn no_program_makes_the_reader_panic(
        changes in proptest::collection::vec((0_usize..0x300, any::<u8>()), 0..30),
        keep in 0_usize..0x1400,
    ) {
        let mut bytes = uki(&[(".uname", b"x")]);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(keep);
        let _ = predict_pcr11(&bytes);
        let _ = predict_pcr4(0, &[&bytes]);
        let _ = booted(&bytes);
    }
}

/// Where two images take too much memory, their digests predict the same.
#[test]
fn the_digests_of_images_predict_what_the_images_do() {
    let (running, next) = (uki(&[(".uname", b"1")]), uki(&[(".uname", b"2")]));
    let loader = program(&[(".text", b"loader")]);
    let [first, second] = [&running, &next].map(|it| MeasuredImage::read(it).expect("an image"));
    assert_eq!(first.pcr_11(), &predict_pcr11(&running).expect("an image"));
    assert_ne!(first, second);
    let digest = authenticode(&loader).expect("a program");
    let by_digests = ImageUpdate {
        loaders: &[digest],
        running: &first,
        next: &second,
    };
    let by_bytes = ProgramUpdate {
        loaders: &[loader.as_slice()],
        running: &running,
        next: &next,
    };
    let [uki, kernel] = booted(&running).expect("an image");
    let pcr_4 = predict_pcr4(1, &[&loader, uki, kernel]).expect("predictable");
    for now in [
        PcrValues::from([(4, pcr_4), (12, [0; 32])]),
        PcrValues::from([(4, [9; 32]), (12, [0; 32])]),
        PcrValues::from([(4, pcr_4), (12, [1; 32])]),
        PcrValues::new(),
    ] {
        for choice in [PcrChoice::measured(), PcrChoice::enforced()] {
            let predicted = by_digests.predict(&choice, &now);
            assert_eq!(predicted, by_bytes.predict(&choice, &now), "{now:?}");
        }
    }
    let many = vec![digest; BOOTED_PROGRAMS_MAX];
    let too_many = ImageUpdate {
        loaders: &many,
        ..by_digests
    };
    let now = PcrValues::from([(4, pcr_4), (12, [0; 32])]);
    let refused = too_many.predict(&PcrChoice::measured(), &now);
    assert_eq!(refused, Err(PredictError::TooMany(BOOTED_PROGRAMS_MAX + 2)));
    assert!(
        MeasuredImage::read(&loader).is_err(),
        "it is no unified image"
    );
}
