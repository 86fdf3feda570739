//! Questions, answers and pasted configurations, and the keys that were typed for them.

use super::*;

#[test]
fn the_keys_of_answers_are_forgotten_once_nothing_is_asked_or_pasted() {
    let mut driver = driver();
    driver.ask(Some(ConsoleQuestion::shown("word 3")));
    driver.keys(b"zoo\r");
    assert!(!driver.is_done_typing(), "the same is still asked");
    driver.ask(None);
    assert!(driver.is_done_typing());
    let line = ConsoleDocument::line(b"[node]\nname = \"edge-1\"\n");
    let (front, back) = line.split_at(line.len() - 4);
    driver.keys(front.as_bytes());
    assert!(!driver.is_done_typing(), "the paste has not ended");
    driver.keys(back.as_bytes());
    driver.keys(b"\r");
    assert!(driver.is_done_typing());
    driver.keys_forgotten();
    assert!(!driver.is_done_typing());
    driver.keys(format!("{}\r", *line).as_bytes());
    assert!(
        driver.is_done_typing(),
        "what was pasted is forgotten as well"
    );
}

/// Ctrl-C, Ctrl-U, Esc, and a question that goes away: the keys are in the terminal all the same.
#[test]
fn the_keys_of_text_that_was_given_up_are_forgotten_too() {
    for end in ["\x03", "\x15", "\x1b"] {
        let mut driver = driver();
        driver.ask(Some(ConsoleQuestion::secret("passphrase")));
        driver.keys(b" ");
        driver.keys(b"hush");
        assert!(!driver.has_typed(), "it is being typed");
        driver.keys(end.as_bytes());
        assert!(driver.has_typed(), "{end:?}");
    }
    let mut driver = driver();
    driver.ask(Some(ConsoleQuestion::secret("passphrase")));
    driver.keys(b" ");
    // The user erases them one by one.
    driver.keys(b"hush\x7f\x7f\x7f\x7f");
    driver.ask(None);
    assert!(driver.has_typed() && driver.is_done_typing());
}

/// A key that repeats before the line was quiet for long enough, and a question that stays.
#[test]
fn keys_are_forgotten_at_the_latest_after_some_time() {
    let mut driver = driver();
    let mut answered = None;
    let mut now = Instant::now();
    driver.ask(Some(ConsoleQuestion::secret("passphrase")));
    driver.keys(b" hush\r");
    for passed in 0..FORGET_AT_LATEST.as_secs() {
        let left = forget_in(&driver, &mut answered, now, now);
        let expected = FORGET_AT_LATEST - Duration::from_secs(passed);
        assert_eq!(left, Some(expected), "it is still asked");
        now += Duration::from_secs(1);
        driver.keys(b"x");
    }
    let left = forget_in(&driver, &mut answered, now, now);
    assert_eq!(left, Some(Duration::ZERO));
    assert!(!is_overdue(answered, now));
    now += 2 * FORGET_GRACE;
    assert!(is_overdue(answered, now), "keys that always wait");
    driver.keys_forgotten();
    assert_eq!(forget_in(&driver, &mut answered, now, now), None);
    assert!(!is_overdue(answered, now));
}

#[test]
fn what_is_asked_is_announced_and_the_first_key_answers_it() {
    let mut driver = ConsoleDriver::new("Linux".into(), (80, 24));
    driver.ask(Some(ConsoleQuestion::secret("type the passphrase")));
    let plain = driver.take(0, Timestamp::UNIX_EPOCH);
    assert!(
        plain.contains("alknet: asks: type the passphrase\n"),
        "{plain}"
    );
    driver.keys(b"lp");
    let live = driver.take(10, Timestamp::UNIX_EPOCH);
    assert!(live.contains("type the passphrase: **_"), "{live}");
    driver.keys(b"x\x7f\r");
    let [ConsoleInput::Line(line)] = &driver.answers()[..] else {
        panic!("one answer");
    };
    assert_eq!(line.as_str(), "lp");
    driver.ask(None);
    assert!(
        !driver
            .take(2000, Timestamp::UNIX_EPOCH)
            .contains("passphrase")
    );
    driver.keys(b"v");
    assert_eq!(driver.answers(), [ConsoleInput::Begin]);
}

#[test]
fn words_are_shown_to_a_person_only_and_not_left_on_the_screen() {
    let mut driver = ConsoleDriver::new("Linux".into(), (80, 24));
    let words = ConsoleQuestion::shown("word 3")
        .with_lines(["1 abandon 2 about"])
        .private();
    driver.ask(Some(words));
    let plain = driver.take(60_000, Timestamp::UNIX_EPOCH);
    assert!(
        !plain.contains("abandon") && !plain.contains("word 3"),
        "{plain}"
    );
    driver.keys(b"\r");
    assert!(
        driver
            .take(61_000, Timestamp::UNIX_EPOCH)
            .contains("abandon")
    );
    driver.ask(None);
    let after = driver.take(62_000, Timestamp::UNIX_EPOCH);
    assert!(
        after.contains("\x1b[H") && after.contains("\x1b[J"),
        "{after}"
    );
    assert!(!format!("{driver:?}").contains("abandon"));
}

#[test]
fn a_pasted_configuration_is_taken_wherever_it_is_typed_and_never_shown() {
    let document = b"[node]\nname = \"edge-1\"\n[secrets]\n";
    let line = ConsoleDocument::line(document);
    let words = || {
        ConsoleQuestion::shown("word 3")
            .with_lines(["1 abandon 2 about"])
            .private()
    };
    for question in [
        None,
        Some(words()),
        Some(ConsoleQuestion::secret("passphrase")),
    ] {
        let mut driver = driver();
        driver.update(healthy(), Some(node()));
        driver.ask(question.clone());
        take(&mut driver, 0);
        let (front, back) = line.split_at(30);
        driver.keys(front.as_bytes());
        let shown = take(&mut driver, 5000);
        assert!(
            shown.contains("being pasted: 30 bytes") && !shown.contains(&front[14..]),
            "{shown}"
        );
        driver.keys(format!("{back}\r\n").as_bytes());
        let answers = driver.answers();
        let [ConsoleInput::Pasted(pasted)] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(**pasted, *line);
        let after = take(&mut driver, 10_000);
        assert!(!after.contains("pasted") && !after.contains(&front[14..]));
        assert_eq!(
            after.contains("word 3"),
            question == Some(words()),
            "{after}"
        );
        assert!(!format!("{driver:?}{answers:?}").contains(&front[14..]));
    }
}

#[test]
fn a_question_that_is_left_can_be_returned_to() {
    let mut driver = ConsoleDriver::new("Linux".into(), (80, 24));
    driver.ask(Some(ConsoleQuestion::shown("yes or no")));
    driver.keys(b"n\x1bl");
    assert!(
        !driver
            .take(0, Timestamp::UNIX_EPOCH)
            .contains("yes or no: ")
    );
    driver.keys(b"uy");
    assert!(
        driver
            .take(5000, Timestamp::UNIX_EPOCH)
            .contains("yes or no: y_")
    );
    driver.keys(&[3]);
    assert_eq!(driver.answers(), [ConsoleInput::Cancel]);
}
