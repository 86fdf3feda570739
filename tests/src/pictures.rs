//! The pictures of the documentation. In every run a test takes each picture, compares it with the
//! one in `docs/pictures`, and writes it there on request.
//!
//! Times, numbers, keys and plots differ from run to run, and fonts are drawn slightly differently
//! on another machine. So the test compares not pixels, but the mean brightness of cells of about
//! 80 × 64 pixels, without the plots. A digit changes the mean of its cell by less than 2 of 255. A
//! lost column changes five cells by 5 to 8.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::browser::Browser;
use crate::png::GreyPicture;

/// If set, tests write their snapshots instead of comparing them: `BLESS_VARIABLE` of
/// `crates/tasks`.
const BLESS_VARIABLE: &str = "ALKNET_BLESS";

/// Approximate cell width in pixels: a word of the page.
const CELL_WIDTH: usize = 80;
/// Approximate cell height: two lines.
const CELL_HEIGHT: usize = 64;
/// How far the mean brightness of a cell may be from that of the docs' picture, of 255. Two runs on
/// one machine differ by 2, even if one is shifted by two pixels. A lost column changes five cells
/// by 5 to 8.
const CELL_DIFFERENCE_MAX: f64 = 4.0;
/// How many cells may differ by more, because a number may get longer by some digits.
const CELLS_FREE: usize = 2;

/// The plots of measurements on the page: left, top, right and bottom of each.
const PLOTS: &str =
    "[...document.querySelectorAll('main svg')].filter((it) => it.querySelector('polyline'))
    .map((it) => it.getBoundingClientRect()).map((it) => [it.left, it.top, it.right, it.bottom])";

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

/// All pictures.
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
    /// Takes the picture of the page in the browser, into `folder`, and compares it with the
    /// documentation's. If `ALKNET_BLESS` is set, it replaces the documentation's picture.
    ///
    /// # Panics
    /// The picture has another size or looks different, or a folder cannot be written.
    pub fn take(&self, browser: &mut Browser, folder: &Path) {
        browser.emulate_screen(self.width, self.height, self.dark);
        let picture = browser.window();
        let size = png_size(&picture);
        assert_eq!(size, Some((self.width, self.height)), "{}", self.file);
        let plots = browser.evaluate(PLOTS);
        let plots: Vec<[f64; 4]> = serde_json::from_value(plots).expect("rectangles");
        let write = |file: &Path| {
            let written = std::fs::write(file, &picture);
            written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        };
        write(&folder.join(self.file));
        if std::env::var_os(BLESS_VARIABLE).is_some() {
            return write(&self.in_docs());
        }
        let taken = GreyPicture::decode(&picture).expect("a browser's picture");
        let differing = differing_cells(&self.documented(), &taken, &plots);
        assert!(
            differing.len() <= CELLS_FREE,
            "{} of the docs shows another page than {}: at these pixels the brightness differs: {differing:#?}; look \
             at both, and renew the docs' pictures by {BLESS_VARIABLE}=1 cargo xtask test pictures",
            self.file,
            folder.join(self.file).display()
        );
    }

    fn in_docs(&self) -> PathBuf {
        let docs = [env!("CARGO_MANIFEST_DIR"), "../docs/pictures", self.file];
        docs.iter().collect()
    }

    /// The documentation's picture.
    fn documented(&self) -> GreyPicture {
        let file = self.in_docs();
        let png =
            std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let picture = GreyPicture::decode(&png);
        picture.unwrap_or_else(|| panic!("{} is no picture of a browser", file.display()))
    }
}

/// Cells whose mean brightness differs by more than [`CELL_DIFFERENCE_MAX`], each with its position
/// and the difference. The `hidden` rectangles do not count.
fn differing_cells(one: &GreyPicture, two: &GreyPicture, hidden: &[[f64; 4]]) -> Vec<String> {
    assert_eq!((one.width, one.height), (two.width, two.height), "pixels");
    let rows = pieces(one.height, CELL_HEIGHT);
    let cells = rows.flat_map(|y| pieces(one.width, CELL_WIDTH).map(move |x| (x, y.clone())));
    let differing = cells.filter_map(|(x, y)| {
        let [one, two] = [one, two].map(|picture| mean(picture, &x, &y, hidden));
        let difference = (one - two).abs();
        let differs = difference > CELL_DIFFERENCE_MAX;
        differs.then(|| {
            format!(
                "{}-{}, {}-{}: {difference:.1}",
                x.start, x.end, y.start, y.end
            )
        })
    });
    differing.collect()
}

/// A length in equal pieces of about `piece`.
fn pieces(length: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(piece);
    (0..count).map(move |nth| nth * length / count..(nth + 1) * length / count)
}

/// Mean brightness of a cell. 0 if the whole cell is hidden.
fn mean(picture: &GreyPicture, x: &Range<usize>, y: &Range<usize>, hidden: &[[f64; 4]]) -> f64 {
    let is_hidden = |x: usize, y: usize| {
        let (x, y) = (x as f64, y as f64);
        let is_in = |[left, top, right, bottom]: &[f64; 4]| {
            (*left..*right).contains(&x) && (*top..*bottom).contains(&y)
        };
        hidden.iter().any(is_in)
    };
    let (mut sum, mut count) = (0_u64, 0_u32);
    for y in y.clone() {
        for x in x.clone().filter(|x| !is_hidden(*x, y)) {
            sum += u64::from(picture.luma[y * picture.width + x]);
            count += 1;
        }
    }
    sum as f64 / f64::from(count.max(1))
}

/// Width and height from the head of a PNG file.
fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let (width, rest) = header.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    #[test]
    fn the_size_of_a_png_is_in_its_head() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x05\0\0\0\x03\xe8".to_vec();
        assert_eq!(png_size(&png), Some((1280, 1000)));
        png.truncate(20);
        assert_eq!(png_size(&png), None);
        assert_eq!(png_size(b"GIF89a"), None);
    }

    /// Fills a rectangle of a picture with its background.
    fn blank(picture: &mut GreyPicture, x: Range<usize>, y: Range<usize>) {
        let (width, background) = (picture.width, picture.luma[0]);
        for y in y {
            picture.luma[y * width + x.start..y * width + x.end].fill(background);
        }
    }

    /// The same page, shifted some pixels to the right and down.
    fn moved(picture: &GreyPicture, pixels: usize) -> GreyPicture {
        let (width, mut moved) = (picture.width, picture.clone());
        moved.luma.fill(picture.luma[0]);
        for y in pixels..picture.height {
            let line = &picture.luma[(y - pixels) * width..(y - pixels + 1) * width - pixels];
            moved.luma[y * width + pixels..(y + 1) * width].copy_from_slice(line);
        }
        moved
    }

    /// The page on a laptop. Read once, because that is slow.
    fn laptop() -> GreyPicture {
        static LAPTOP: LazyLock<GreyPicture> = LazyLock::new(|| DOCS_PICTURES[0].documented());
        assert_eq!(LAPTOP.width, 1280, "that of the page in light colours");
        LAPTOP.clone()
    }

    #[test]
    fn a_picture_that_is_drawn_elsewhere_by_a_pixel_is_the_same() {
        for documented in [laptop(), DOCS_PICTURES[2].documented()] {
            let differing = differing_cells(&documented, &moved(&documented, 1), &[]);
            assert!(differing.is_empty(), "{differing:?}");
        }
    }

    /// Uptime, and the memory that alknet uses: the third column of the first section.
    #[test]
    fn a_page_that_lost_a_column_is_another_one() {
        let (documented, mut lost) = (laptop(), laptop());
        blank(&mut lost, 840..1200, 342..466);
        let differing = differing_cells(&documented, &lost, &[]);
        assert!(differing.len() > CELLS_FREE, "{differing:?}");
    }

    #[test]
    fn plots_are_not_compared() {
        let (documented, mut other) = (laptop(), laptop());
        blank(&mut other, 940..1200, 740..920);
        let differing = differing_cells(&documented, &other, &[]);
        assert!(differing.len() > CELLS_FREE, "{differing:?}");
        let hidden = [[940.0, 740.0, 1200.0, 920.0]];
        assert!(differing_cells(&documented, &other, &hidden).is_empty());
    }

    #[test]
    fn pieces_cover_a_length() {
        assert_eq!(pieces(10, 4).collect::<Vec<_>>(), [0..3, 3..6, 6..10]);
        assert_eq!(pieces(1280, CELL_WIDTH).count(), 16);
    }
}
