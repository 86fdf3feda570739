//! Private text: shown where a user asks for it, erased, and not pushed out of reach. A live console that is left.

use super::super::driver::LIVE_IDLE_MS;
use super::*;

const ERASED: &str = "\u{1b}[H\u{1b}[J\u{1b}[2J\u{1b}[3J";

fn words() -> ConsoleQuestion {
    ConsoleQuestion::shown("word 3")
        .with_lines(["1 abandon 2 about"])
        .private()
}

#[test]
fn no_line_is_printed_on_a_screen_while_it_has_private_text() {
    let mut driver = driver().on_screen();
    driver.keys(b" ");
    take(&mut driver, 0);
    driver.ask(Some(words()));
    assert!(take(&mut driver, 1).contains("abandon"));
    driver.say("alknet: held back");
    driver.update(healthy(), Some(node()));
    assert_eq!(driver.due_ms(2), Some(999), "the lines wait");
    driver.keys(b"z");
    let drawn = take(&mut driver, 3);
    assert!(drawn.contains("word 3: z_"), "{drawn}");
    assert!(
        !drawn.contains("held back") && !drawn.contains("alknet: ready"),
        "{drawn}"
    );
    driver.ask(None);
    assert_eq!(driver.due_ms(4), Some(0));
    let after = take(&mut driver, 4);
    let erased = after.find(ERASED).expect("it is erased");
    let held = after.find("alknet: held back\n").expect("it is printed");
    assert!(erased < held && after.contains("alknet: ready"), "{after}");
    assert!(!take(&mut driver, 5000).contains(ERASED), "once");
}

/// Programs follow the serial line.
#[test]
fn a_serial_line_says_that_the_machine_is_ready_while_words_are_shown() {
    let mut driver = driver();
    driver.keys(b" ");
    take(&mut driver, 0);
    driver.ask(Some(words()));
    assert!(take(&mut driver, 1).contains("abandon"));
    driver.update(healthy(), Some(node()));
    assert_eq!(driver.due_ms(2), Some(0));
    assert!(take(&mut driver, 2).contains("alknet: ready"));
}

#[test]
fn private_text_is_erased_when_its_user_leaves_it() {
    for keys in ["\u{1b}", "\u{1b}q"] {
        let mut driver = driver();
        driver.ask(Some(words()));
        driver.keys(b"\r");
        assert!(take(&mut driver, 0).contains("abandon"));
        driver.keys(keys.as_bytes());
        let after = take(&mut driver, 1);
        assert!(after.starts_with(ERASED), "{after:?}");
        assert!(!after.contains("abandon"));
    }
}

#[test]
fn a_live_console_that_is_left_becomes_plain_and_clear() {
    let mut driver = driver();
    driver.update(healthy(), Some(node()));
    driver.keys(b" ");
    take(&mut driver, 0);
    driver.keys(b"r");
    take(&mut driver, 1000);
    assert!(!take(&mut driver, LIVE_IDLE_MS).contains("live screen off"));
    let left = take(&mut driver, 1000 + LIVE_IDLE_MS);
    assert!(
        left.starts_with(ERASED) && left.contains("live screen off"),
        "{left:?}"
    );
    driver.ask(Some(words()));
    let later = take(&mut driver, 2 * LIVE_IDLE_MS);
    assert!(!later.contains("abandon"), "{later}");
}

/// Noise on the line is no person at the keyboard.
#[test]
fn noise_keeps_no_console_live() {
    let mut driver = driver();
    driver.ask(Some(words()));
    driver.keys(b" ");
    assert!(take(&mut driver, 0).contains("abandon"));
    driver.keys(&[0, 0xff, 0x80]);
    let left = take(&mut driver, LIVE_IDLE_MS);
    assert!(left.starts_with(ERASED) && !left.contains("abandon"));
}

#[test]
fn a_key_asks_for_what_a_question_offers() {
    let offer = || ConsoleQuestion::on_request(["there are words"]);
    for is_live in [false, true] {
        let mut driver = driver();
        if is_live {
            driver.keys(b" ");
            take(&mut driver, 0);
        }
        driver.ask(Some(offer()));
        let shown = take(&mut driver, 1);
        assert_eq!(shown.contains("there are words"), is_live);
        driver.keys(b"\r");
        assert_eq!(driver.answers(), [ConsoleInput::Look]);
        assert_eq!(take(&mut driver, 2), "", "the next picture has them");
        driver.ask(Some(words()));
        assert!(take(&mut driver, 3).contains("abandon"));
    }
    // Another console was first.
    let mut driver = driver();
    driver.ask(Some(offer()));
    driver.keys(b"\r");
    driver.ask(None);
    driver.ask(Some(words()));
    assert!(!take(&mut driver, 0).contains("abandon"));
}
