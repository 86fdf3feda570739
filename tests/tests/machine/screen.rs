//! A PC with a screen and a keyboard at USB: its owner sees and types there what others do at the serial line.

use std::time::{Duration, Instant};

use alknet_qemu::Vm;
use alknet_tests::{BootVariant, TestBench};

/// Where a graphics card has the text of its text mode, as the IBM PC has it: 25 lines of 80 characters, each followed
/// by its colours.
const TEXT_AT: u32 = 0xb8000;
const COLUMNS: usize = 80;
const ROWS: usize = 25;

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
    // The first key makes the page live, which fits the screen; what was printed before is longer. The kernel may find the
    // keyboard later than the node serves, so the key is pressed until it has an effect.
    shows(vm, Some("r"), "parlour");
    shows(vm, None, "(ed25519)");
    shows(vm, Some("l"), "info");
    let log = screen(vm);
    assert!(
        !log.contains("(ed25519)"),
        "the log takes the whole screen: {log}"
    );
    press(vm, "q");
    shows(vm, None, "(ed25519)");
}

/// Waits until the screen has this text, and presses a key meanwhile.
fn shows(vm: &Vm, key: Option<&str>, text: &str) {
    let deadline = Instant::now() + vm.scale(DRAWN_WITHIN);
    loop {
        if let Some(key) = key {
            press(vm, key);
        }
        std::thread::sleep(Duration::from_millis(300));
        let screen = screen(vm);
        if screen.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "no {text:?} on\n{screen}");
    }
}

/// The text on the screen, read from the card's memory.
fn screen(vm: &Vm) -> String {
    let words = COLUMNS * ROWS;
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
