//! The pictures of the documentation. A test takes each of them in every run, and writes them into `docs/pictures` when it
//! is asked to.

use std::path::{Path, PathBuf};

use crate::browser::Browser;

/// Set, it has tests write their snapshots in place of comparing them: `BLESS_VARIABLE` of `crates/tasks`.
const BLESS_VARIABLE: &str = "ALKNET_BLESS";

/// A picture of the status page in `docs/pictures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocsPicture {
    /// Name of the file.
    pub file: &'static str,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Whether the reader prefers dark colours.
    pub dark: bool,
}

/// All of them.
pub const DOCS_PICTURES: [DocsPicture; 3] = [
    DocsPicture {
        file: "page-light.png",
        width: 1280,
        height: 1000,
        dark: false,
    },
    DocsPicture {
        file: "page-dark.png",
        width: 1280,
        height: 1000,
        dark: true,
    },
    DocsPicture {
        file: "page-phone.png",
        width: 360,
        height: 800,
        dark: false,
    },
];

impl DocsPicture {
    /// Takes the picture of the page that the browser shows: into `folder`, and into the documentation where
    /// `ALKNET_BLESS` is set.
    ///
    /// # Panics
    /// The picture does not have its size, or a folder cannot be written.
    pub fn take(&self, browser: &mut Browser, folder: &Path) {
        browser.look(self.width, self.height, self.dark);
        let picture = browser.window();
        let size = png_size(&picture);
        assert_eq!(size, Some((self.width, self.height)), "{}", self.file);
        let mut folders = vec![folder.to_owned()];
        if std::env::var_os(BLESS_VARIABLE).is_some() {
            let docs: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../docs/pictures"]
                .iter()
                .collect();
            folders.push(docs);
        }
        for folder in folders {
            let file = folder.join(self.file);
            let written = std::fs::write(&file, &picture);
            written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

/// Width and height that the head of a PNG file says.
fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let (width, rest) = header.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_png_is_in_its_head() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x05\0\0\0\x03\xe8".to_vec();
        assert_eq!(png_size(&png), Some((1280, 1000)));
        png.truncate(20);
        assert_eq!(png_size(&png), None);
        assert_eq!(png_size(b"GIF89a"), None);
    }
}
