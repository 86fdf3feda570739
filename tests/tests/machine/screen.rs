//! A PC with a screen and a keyboard at USB: its owner sees and types there what others do at the serial line.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use alknet_qemu::Vm;
use alknet_tests::{BootVariant, TestBench, eventually};

/// Where a graphics card has the text of its text mode, as the IBM PC has it: lines of 80 characters, each followed by
/// its colours. The screen shows 25 of the lines, and the kernel scrolls by another first one.
const TEXT_AT: u32 = 0xb8000;
const TEXT_BYTES: usize = 32 << 10;
const COLUMNS: usize = 80;
const LINES: usize = 25;
/// Characters without a picture (code page 437).
const BLANK: [u8; 3] = [0, b' ', 0xff];

/// What stands above new words.
const WORDS: &str = "These words are this node.";

/// Time from a key to its effect, on a native processor.
const DRAWN_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn a_screen_and_a_usb_keyboard_are_a_console() {
    let bench = TestBench::new();
    let node = bench
        .machine(BootVariant::Q35Initramfs)
        .config("[node]\nname = \"parlour\"\n")
        .with(|vm| {
            ["VGA", "qemu-xhci,id=usb", "usb-kbd,bus=usb.0"]
                .into_iter()
                .fold(vm, |vm, device| vm.argument("-device").argument(device))
        })
        .boot();
    let vm = node.vm();
    // The kernel may find the keyboard later than the node serves, so each key is pressed until it has an effect. The
    // first one at a new machine shows its words, here and nowhere else.
    shows(vm, "l", WORDS);
    assert!(
        !vm.console().text().contains(WORDS),
        "the serial line has none"
    );
    // Nothing of them stays in the card's memory, of which the screen shows an eighth.
    eventually("the words are erased", || {
        press(vm, "esc");
        (!screen(vm).contains(WORDS)).then_some(())
    });
    shows(vm, "l", " info  init: ");
    let picture = bench.path().join("screen.ppm");
    eventually("the screen shows what the card's memory has", || {
        let (cells, drawn) = (cells(vm), drawn(vm, &picture));
        let first = (0..=cells.len() / COLUMNS - LINES).find(|first| {
            let shown = &cells[first * COLUMNS..][..drawn.len()];
            let differs = |(cell, drawn): (&u8, &bool)| BLANK.contains(cell) == *drawn;
            let differences = shown.iter().zip(&drawn).filter(|pair| differs(*pair));
            // The cursor may stand in an empty cell.
            differences.count() <= 1
        });
        let count = drawn.iter().filter(|drawn| **drawn).count();
        (first.is_some() && count > COLUMNS).then_some(())
    });
}

/// Waits until the screen has this text, and presses a key meanwhile.
fn shows(vm: &Vm, key: &str, text: &str) {
    let deadline = Instant::now() + vm.scale(DRAWN_WITHIN);
    loop {
        press(vm, key);
        std::thread::sleep(Duration::from_millis(300));
        let screen = screen(vm);
        if screen.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "no {text:?} on\n{screen}");
    }
}

/// The text in the card's memory.
fn screen(vm: &Vm) -> String {
    let cells = cells(vm);
    let lines = cells.chunks(COLUMNS);
    let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    lines.join("\n")
}

/// The characters in the card's memory.
fn cells(vm: &Vm) -> Vec<u8> {
    let words = TEXT_BYTES / 2;
    let dumped = vm.qmp().human(&format!("xp /{words}hx {TEXT_AT:#x}"));
    let dumped = dumped.unwrap_or_else(|error| panic!("{error}"));
    let cells: Vec<u8> = dumped
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.1))
        .flat_map(str::split_whitespace)
        .map(|cell| u16::from_str_radix(cell.trim_start_matches("0x"), 16))
        .map(|cell| cell.map_or(b'?', |cell| cell as u8))
        .collect();
    assert_eq!(cells.len(), words, "{dumped}");
    cells
}

/// Which cells of the screen have a character, by the picture that the card draws: their pixels have two colours.
/// QEMU writes the picture to this file.
fn drawn(vm: &Vm, file: &Path) -> Vec<bool> {
    let done = vm.qmp().human(&format!("screendump {}", file.display()));
    done.unwrap_or_else(|error| panic!("{error}"));
    let picture = fs::read(file).expect("QEMU has written it");
    // "P6", width, height and the largest value, each with one white space behind it, and then the pixels (ppm(5)).
    let mut fields = picture.splitn(5, u8::is_ascii_whitespace);
    assert_eq!(fields.next(), Some(&b"P6"[..]));
    let mut number = || -> usize {
        let field = fields.next().and_then(|field| str::from_utf8(field).ok());
        let number = field.and_then(|field| field.parse().ok());
        number.expect("a number in the head of the picture")
    };
    let (width, height, most) = (number(), number(), number());
    assert_eq!(most, 255);
    let pixels: Vec<&[u8]> = fields.next().unwrap_or_default().chunks(3).collect();
    assert_eq!(pixels.len(), width * height);
    let (across, down) = (width / COLUMNS, height / LINES);
    let has_two_colours = |cell: usize| {
        let (left, top) = (cell % COLUMNS * across, cell / COLUMNS * down);
        let rows = (top..top + down).map(|row| &pixels[row * width + left..][..across]);
        let mut pixels = rows.flatten();
        let first = pixels.next();
        pixels.any(|pixel| Some(pixel) != first)
    };
    (0..COLUMNS * LINES).map(has_two_colours).collect()
}

fn press(vm: &Vm, key: &str) {
    let pressed = vm.qmp().human(&format!("sendkey {key}"));
    pressed.unwrap_or_else(|error| panic!("{error}"));
}
