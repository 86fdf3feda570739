use proptest::prelude::*;

use super::*;

const ABOUT: &str = "abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon about";

#[test]
fn the_list_is_the_published_one() {
    assert_eq!(words::LIST.len(), 2048);
    assert!(words::LIST.is_sorted());
    let longest = words::LIST.iter().map(|word| word.len()).max();
    assert_eq!(longest, Some(words::LONGEST));
    let hash = crypto::sha256(include_bytes!("english.txt"));
    assert_eq!(
        data_encoding::HEXLOWER.encode(&hash),
        "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
    );
}

#[test]
fn typing_is_forgiven_and_the_canonical_form_comes_back() {
    let plain = Entropy::parse(ABOUT).expect("words");
    let upper = format!(
        "\n\t {}\u{3000}\r\n",
        ABOUT.to_uppercase().replace(' ', " \t ")
    );
    assert_eq!(Entropy::parse(&upper).expect("words"), plain);
    // Letters of full width, which NFKD folds to plain ones.
    let wide: String = ABOUT
        .chars()
        .map(|c| match c {
            'a'..='z' => char::from_u32(c as u32 - 'a' as u32 + 0xff41).expect("a letter"),
            other => other,
        })
        .collect();
    assert_eq!(Entropy::parse(&wide).expect("words"), plain);
    assert_eq!(plain.phrase().expose(), ABOUT);
    assert_eq!(plain.bytes(), [0; 16]);
}

#[test]
fn an_unknown_word_is_named_by_place_and_neighbour() {
    let at = |phrase: &str| Entropy::parse(phrase).expect_err("a word is unknown");
    let typo = ABOUT.replacen("about", "abuot", 1);
    assert_eq!(
        at(&typo).to_string(),
        "word 12 is not in the list; the nearest is \"about\""
    );
    let unknown = |position, nearest| MnemonicError::UnknownWord { position, nearest };
    assert_eq!(at("zoo wolff"), unknown(2, "wolf"));
    assert_eq!(at("acount"), unknown(1, "account"));
    assert_eq!(at("zo\u{301}o"), unknown(1, "zoo"));
    // A word of a thousand letters costs no more than one of sixteen.
    assert!(matches!(
        at(&"z".repeat(1024)),
        MnemonicError::UnknownWord { position: 1, .. }
    ));
}

#[test]
fn a_wrong_checksum_names_no_word() {
    let swapped = ABOUT.replacen("about", "zoo", 1);
    let error = Entropy::parse(&swapped).expect_err("the checksum is wrong");
    assert_eq!(error, MnemonicError::Checksum);
    assert!(!error.to_string().contains("zoo"));
}

#[test]
fn only_five_lengths_are_phrases() {
    for words in 0..30 {
        let typed = vec!["abandon"; words].join(" ");
        match (words, Entropy::parse(&typed)) {
            (12 | 15 | 18 | 21 | 24, Err(MnemonicError::Checksum)) => {}
            (_, Err(MnemonicError::WordCount { words: counted })) => {
                assert_eq!(counted, words.min(25));
            }
            (_, other) => panic!("{words} words: {other:?}"),
        }
    }
    for bytes in 0..40 {
        let right = [16, 20, 24, 28, 32].contains(&bytes);
        assert_eq!(
            Entropy::from_bytes(&vec![7; bytes]).is_ok(),
            right,
            "{bytes} bytes"
        );
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let pad = |bytes: usize| format!("{ABOUT}{}", " ".repeat(bytes - ABOUT.len()));
    assert!(Entropy::parse(&pad(MAX_PHRASE_BYTES)).is_ok());
    let error = Entropy::parse(&pad(MAX_PHRASE_BYTES + 1)).expect_err("too long");
    assert_eq!(error, MnemonicError::TooLong);
    let entropy = Entropy::parse(ABOUT).expect("words");
    let pass = |bytes| SecretStr::from_string("x".repeat(bytes));
    assert!(entropy.seed(&pass(MAX_PASSPHRASE_BYTES)).is_ok());
    let error = entropy.seed(&pass(MAX_PASSPHRASE_BYTES + 1));
    assert_eq!(
        error.expect_err("too long"),
        MnemonicError::PassphraseTooLong
    );
}

#[test]
fn one_passphrase_has_one_seed_however_it_is_composed() {
    let entropy = Entropy::parse(ABOUT).expect("words");
    let seed = |pass: &str| entropy.seed(&pass.into()).expect("a seed");
    assert_eq!(seed("Zürich ﬁn"), seed("Zu\u{308}rich fin"));
    assert_ne!(seed("Zürich"), seed("Zurich"));
}

#[test]
fn new_words_differ_and_are_as_many_as_asked() {
    let make = |words| Entropy::generate(words).expect("random bytes");
    assert_eq!(make(WordCount::Twelve).words(), 12);
    assert_eq!(make(WordCount::default()).words(), 24);
    assert_ne!(make(WordCount::TwentyFour), make(WordCount::TwentyFour));
    assert_eq!(format!("{:?}", make(WordCount::Twelve)), "Entropy(..)");
}

proptest! {
    #[test]
    fn every_entropy_survives_its_words(bytes in prop::collection::vec(any::<u8>(), 32), size in 0..5_usize) {
        let entropy = Entropy::from_bytes(&bytes[..16 + size * 4]).expect("a length of the list");
        let phrase = entropy.phrase();
        prop_assert_eq!(phrase.expose().split(' ').count(), entropy.words());
        prop_assert_eq!(Entropy::parse(phrase.expose()).expect("words"), entropy);
    }

    #[test]
    fn any_text_ends_in_words_or_an_error(text in any::<String>()) {
        let _ = Entropy::parse(&text);
    }
}
