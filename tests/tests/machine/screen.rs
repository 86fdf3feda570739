//! PCs with a screen and a keyboard at USB: their owners see and type there what others do at the serial line. Under a BIOS
//! the kernel writes to the text mode of the graphics card, and under UEFI it draws on the frame buffer of the firmware.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{DiskController, NicModel, VirtioDisk, Vm, VmBuilder};
use alknet_tests::tools::tool_says;
use alknet_tests::{TestBench, eventually};
use serde_json::json;

use super::configuration::document;
use super::forms::{built, serving, uefi};
use super::linuxkit;

/// Where a graphics card has the text of its text mode, as the IBM PC has it: lines of 80 characters, each followed by
/// its colours. The screen shows 25 of the lines, and the kernel scrolls by another first one.
const TEXT_AT: u32 = 0xb8000;
const TEXT_BYTES: usize = 32 << 10;
const COLUMNS: usize = 80;
const LINES: usize = 25;
/// Characters without a picture (code page 437).
const BLANK: [u8; 3] = [0, b' ', 0xff];
/// Pixels of a character that the kernel draws on a frame buffer.
const GLYPH_WIDTH: usize = 8;
const GLYPH_HEIGHT: usize = 16;

/// What stands above new words.
const WORDS: &str = "These words are this node.";
/// A name of a machine. Its letters repeat so often that no other text has pictures of the same pattern.
const NAME: &str = "drawn-by-the-kernel-on-a-frame-buffer";

/// Time from a key to its effect, on a native processor.
const DRAWN_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of a stick with one EFI program.
const STICK_BYTES: u64 = 128 << 20;

/// The machine is made of the form `linuxkit`.
#[test]
fn a_screen_and_a_usb_keyboard_are_a_console() {
    let bench = TestBench::new();
    let data = VirtioDisk::file(bench.data()).data();
    let vm = with_screen(linuxkit::machine(&bench).disk(data));
    let node = serving(&bench, vm.config(document(&bench, "parlour")));
    let info = node.info();
    assert_eq!(info["name"], "parlour", "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
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
    let file = bench.path().join("screen.ppm");
    eventually("the screen shows what the card's memory has", || {
        let (cells, drawn) = (cells(vm), Picture::take(vm, &file).drawn());
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

/// An owner copies the EFI program to a stick, under the name that firmware looks for, and starts a PC from it.
#[test]
fn the_efi_program_on_a_stick_shows_its_console_on_a_frame_buffer() {
    let bench = TestBench::new();
    let stick = VirtioDisk::file(stick_with_program(&bench)).on(DiskController::UsbStorage);
    let config = document(&bench, NAME) + "stateless = true\n";
    let vm = with_screen(uefi(stick, NicModel::Virtio)).config(config);
    let node = serving(&bench, vm);
    let info = node.info();
    assert_eq!(info["name"], NAME, "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    let file = bench.path().join("screen.ppm");
    let shows = |text: &str| {
        eventually("the screen shows a text", || {
            press(node.vm(), if text == NAME { "r" } else { "l" });
            std::thread::sleep(Duration::from_millis(300));
            Picture::take(node.vm(), &file).has_text(text).then_some(())
        });
    };
    shows(NAME);
    // Only a key leads to the log.
    let log = " info  init: ";
    assert!(!Picture::take(node.vm(), &file).has_text(log));
    shows(log);
}

/// A stick with the EFI program of the form `uki` in a file system without a partition table.
fn stick_with_program(bench: &TestBench) -> PathBuf {
    let path = bench.disk("stick", STICK_BYTES);
    let (stick, program) = (
        path.display().to_string(),
        built(ImageForm::Uki, OutputRole::Uki),
    );
    tool_says("mkfs.vfat", &["-F", "32", &stick]);
    tool_says("mmd", &["-i", &stick, "::/EFI", "::/EFI/BOOT"]);
    let program = program.display().to_string();
    let place = "::/EFI/BOOT/BOOTX64.EFI";
    tool_says("mcopy", &["-i", &stick, &program, place]);
    path
}

/// A machine with a graphics card, and a keyboard at a USB host of its own.
fn with_screen(vm: VmBuilder) -> VmBuilder {
    ["VGA", "qemu-xhci,id=usb", "usb-kbd,bus=usb.0"]
        .into_iter()
        .fold(vm, |vm, device| vm.argument("-device").argument(device))
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

/// What a graphics card draws.
struct Picture {
    width: usize,
    height: usize,
    /// The colours of each pixel, from the top left.
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// QEMU writes the picture to this file.
    fn take(vm: &Vm, file: &Path) -> Self {
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
        let (pixels, rest) = fields.next().unwrap_or_default().as_chunks();
        assert!(rest.is_empty() && pixels.len() == width * height);
        Self {
            width,
            height,
            pixels: pixels.to_vec(),
        }
    }

    /// The pixels of a cell, line by line.
    fn cell(&self, size: (usize, usize), column: usize, line: usize) -> Vec<[u8; 3]> {
        let (across, down) = size;
        let rows = line * down..(line + 1) * down;
        let rows = rows.map(|row| &self.pixels[row * self.width + column * across..][..across]);
        rows.flatten().copied().collect()
    }

    /// Which cells of the text mode have a character: their pixels have two colours.
    fn drawn(&self) -> Vec<bool> {
        let size = (self.width / COLUMNS, self.height / LINES);
        let has_two_colours = |cell: usize| {
            let pixels = self.cell(size, cell % COLUMNS, cell / COLUMNS);
            pixels.iter().any(|pixel| *pixel != pixels[0])
        };
        (0..COLUMNS * LINES).map(has_two_colours).collect()
    }

    /// Whether the kernel drew this text within a line. A character is the same picture wherever it stands, and two
    /// characters are different ones, so the test needs no font.
    fn has_text(&self, text: &str) -> bool {
        let size = (GLYPH_WIDTH, GLYPH_HEIGHT);
        let columns = self.width / GLYPH_WIDTH;
        (0..self.height / GLYPH_HEIGHT).any(|line| {
            let glyphs: Vec<_> = (0..columns)
                .map(|column| self.cell(size, column, line))
                .collect();
            let mut places = glyphs.windows(text.len());
            places.any(|glyphs| is_drawn_as(text.as_bytes(), glyphs))
        })
    }
}

/// Whether each character of a text has one picture, and no two characters have the same. A space is one colour.
fn is_drawn_as(text: &[u8], glyphs: &[Vec<[u8; 3]>]) -> bool {
    let pairs = || text.iter().zip(glyphs);
    pairs().all(|(character, glyph)| {
        let is_blank = glyph.iter().all(|pixel| *pixel == glyph[0]);
        is_blank == (*character == b' ')
            && pairs().all(|(other, drawn)| (other == character) == (drawn == glyph))
    })
}

fn press(vm: &Vm, key: &str) {
    let pressed = vm.qmp().human(&format!("sendkey {key}"));
    pressed.unwrap_or_else(|error| panic!("{error}"));
}
