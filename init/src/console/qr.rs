//! QR codes (ISO/IEC 18004) of characters.

use qrcodegen::{QrCode, QrCodeEcc};

use super::Charset;

/// Light modules around the code. The standard requires four. Every tested reader accepts two, and
/// a code of 37 modules then fits beside the text on a screen of 24 rows.
const QUIET_MODULES: i32 = 2;

/// The lines of a QR code of `text`, drawn light on dark: a light module is a bright character, so
/// the terminal's background has to be dark. Half blocks have two modules in one character. ASCII
/// needs two characters for one module. Returns `None` if the text is too long for a QR code.
#[must_use]
pub fn qr_code(text: &str, charset: Charset) -> Option<Vec<String>> {
    // The lowest error correction: a screen has no scratches, and a smaller code can be read from
    // further away.
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    Some(match charset {
        Charset::Ascii => ascii(&code),
        Charset::Utf8 => half_blocks(&code),
    })
}

fn half_blocks(code: &QrCode) -> Vec<String> {
    let rows = span(code).step_by(2);
    let character = |x, y| match (light(code, x, y), light(code, x, y + 1)) {
        (true, true) => '█',
        (true, false) => '▀',
        (false, true) => '▄',
        (false, false) => ' ',
    };
    rows.map(|y| span(code).map(|x| character(x, y)).collect())
        .collect()
}

fn ascii(code: &QrCode) -> Vec<String> {
    let module = |x, y| if light(code, x, y) { "##" } else { "  " };
    span(code)
        .map(|y| span(code).map(|x| module(x, y)).collect())
        .collect()
}

fn span(code: &QrCode) -> std::ops::Range<i32> {
    -QUIET_MODULES..code.size() + QUIET_MODULES
}

/// Whether a module is light. Modules around the code are light, and below them is the terminal's
/// own dark background.
fn light(code: &QrCode, x: i32, y: i32) -> bool {
    y < code.size() + QUIET_MODULES && !code.get_module(x, y)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The light modules that a reader would see, by row and column.
    fn modules(lines: &[String], charset: Charset) -> Vec<Vec<bool>> {
        let row = |line: &String, lit: &[char]| -> Vec<bool> {
            line.chars().map(|c| lit.contains(&c)).collect()
        };
        match charset {
            Charset::Ascii => lines
                .iter()
                .map(|line| row(line, &['#']).into_iter().step_by(2).collect())
                .collect(),
            Charset::Utf8 => lines
                .iter()
                .flat_map(|line| [row(line, &['█', '▀']), row(line, &['█', '▄'])])
                .collect(),
        }
    }

    #[test]
    fn both_drawings_show_the_same_code() {
        let drawings = [Charset::Ascii, Charset::Utf8].map(|charset| {
            let lines = qr_code("alknet:test", charset).expect("short enough");
            modules(&lines, charset)
        });
        let size = drawings[0].len();
        assert_eq!(drawings[0], drawings[1][..size]);
        assert!(drawings[0].iter().all(|row| row.len() == size));
    }

    #[test]
    fn the_finder_patterns_stand_in_a_light_frame() {
        let lines = qr_code("x", Charset::Ascii).expect("short enough");
        let modules = modules(&lines, Charset::Ascii);
        let frame = QUIET_MODULES as usize;
        assert!(modules[..frame].iter().flatten().all(|light| *light));
        assert!(
            modules
                .iter()
                .all(|row| row[..frame].iter().all(|light| *light))
        );
        assert!(modules[frame][frame..frame + 7].iter().all(|light| !light));
    }

    #[test]
    fn an_enrolment_uri_fits_beside_the_text() {
        let uri = format!("alknet:ed25519:{}@192.0.2.100:443", "0f".repeat(32));
        let lines = qr_code(&uri, Charset::Utf8).expect("short enough");
        assert!(
            lines.len() <= 21 && lines[0].chars().count() <= 41,
            "{}",
            lines.len()
        );
    }

    #[test]
    fn a_text_too_long_for_any_code_is_none() {
        assert_eq!(qr_code(&"x".repeat(3000), Charset::Utf8), None);
    }
}
