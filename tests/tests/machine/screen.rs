//! A PC with a screen and a keyboard at USB: its owner sees and types there what others do at the serial line.

use std::time::{Duration, Instant};

use alknet_qemu::Vm;
use alknet_tests::{BootVariant, TestBench, eventually};

/// Where a graphics card has the text of its text mode, as the IBM PC has it: lines of 80 characters, each followed by
/// its colours. The screen shows 25 of the lines, and the kernel scrolls by another first one.
const TEXT_AT: u32 = 0xb8000;
const TEXT_BYTES: usize = 32 << 10;
const COLUMNS: usize = 80;

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
    let lines = cells.chunks(COLUMNS);
    let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    lines.join("\n")
}

fn press(vm: &Vm, key: &str) {
    let pressed = vm.qmp().human(&format!("sendkey {key}"));
    pressed.unwrap_or_else(|error| panic!("{error}"));
}
