//! The subset of PNG (RFC 2083) that a browser writes: 8 bits of red, green and blue, with or
//! without alpha, not interlaced.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// The first bytes of a file (RFC 2083 section 3.1).
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Bytes of the checksum after each chunk. It is not checked, because the picture comes from this
/// machine.
const CHECKSUM_LEN: usize = 4;

/// A picture without its colours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GreyPicture {
    /// In pixels.
    pub(crate) width: usize,
    /// In pixels.
    pub(crate) height: usize,
    /// Luma (ITU-R BT.601) of each pixel, row by row.
    pub(crate) luma: Vec<u8>,
}

/// The header of a file (RFC 2083 section 4.1.1).
#[derive(Clone, Copy, Debug)]
struct PngHeader {
    width: usize,
    height: usize,
    /// Bytes per pixel.
    channels: usize,
}

impl GreyPicture {
    /// Decodes a file. `None` for another kind of PNG or file.
    pub(crate) fn decode(png: &[u8]) -> Option<Self> {
        let mut rest = png.strip_prefix(SIGNATURE)?;
        let (mut header, mut packed) = (None, Vec::new());
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes(*length) as usize;
            let (kind, after) = after.split_first_chunk::<4>()?;
            let (data, after) = after.split_at_checked(length)?;
            match kind {
                b"IHDR" => header = Some(PngHeader::read(data)?),
                b"IDAT" => packed.extend_from_slice(data),
                _ => {}
            }
            rest = after.get(CHECKSUM_LEN..)?;
        }
        let header = header?;
        let mut lines = Vec::new();
        let mut unpacked = ZlibDecoder::new(packed.as_slice());
        unpacked.read_to_end(&mut lines).ok()?;
        header.picture(&lines)
    }
}

impl PngHeader {
    fn read(data: &[u8]) -> Option<Self> {
        let (width, data) = data.split_first_chunk()?;
        let (height, data) = data.split_first_chunk()?;
        // Bits, colour type, compression, filter, interlace.
        let channels = match data {
            [8, 2, 0, 0, 0] => 3,
            [8, 6, 0, 0, 0] => 4,
            _ => return None,
        };
        Some(Self {
            width: u32::from_be_bytes(*width) as usize,
            height: u32::from_be_bytes(*height) as usize,
            channels,
        })
    }

    /// The picture from lines that each begin with their filter's number.
    fn picture(self, lines: &[u8]) -> Option<GreyPicture> {
        let line_len = self.width * self.channels;
        let mut before = vec![0; line_len];
        let mut luma = Vec::with_capacity(self.width * self.height);
        for line in lines.chunks_exact(line_len + 1) {
            let (filter, line) = line.split_first()?;
            let mut line = line.to_vec();
            unfilter(*filter, &mut line, &before, self.channels)?;
            luma.extend(line.chunks_exact(self.channels).map(luma_of));
            before = line;
        }
        (luma.len() == self.width * self.height).then_some(GreyPicture {
            width: self.width,
            height: self.height,
            luma,
        })
    }
}

/// Adds to each byte what its filter subtracted (RFC 2083 section 6).
fn unfilter(filter: u8, line: &mut [u8], above: &[u8], channels: usize) -> Option<()> {
    for at in 0..line.len() {
        let left_at = at.checked_sub(channels);
        let left = left_at.map_or(0, |at| line[at]);
        let corner = left_at.map_or(0, |at| above[at]);
        let predicted = match filter {
            0 => 0,
            1 => left,
            2 => above[at],
            3 => left.midpoint(above[at]),
            4 => paeth(left, above[at], corner),
            _ => return None,
        };
        line[at] = line[at].wrapping_add(predicted);
    }
    Some(())
}

/// The neighbour nearest to left + above - corner (RFC 2083 section 6.6).
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, above, corner].map(i16::from);
    let [to_left, to_above, to_corner] = [b - c, a - c, a + b - 2 * c].map(i16::abs);
    if to_left <= to_above && to_left <= to_corner {
        left
    } else if to_above <= to_corner {
        above
    } else {
        corner
    }
}

fn luma_of(pixel: &[u8]) -> u8 {
    let weighted = pixel.iter().zip([299, 587, 114]);
    let sum: u32 = weighted
        .map(|(value, weight)| u32::from(*value) * weight)
        .sum();
    u8::try_from(sum / 1000).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).expect("a short one");
        [&length.to_be_bytes()[..], kind, data, &[0; CHECKSUM_LEN]].concat()
    }

    /// A picture with two pixels per line, with these filtered lines.
    fn png(kind: u8, lines: &[&[u8]]) -> Vec<u8> {
        let height = u8::try_from(lines.len()).expect("a low one");
        let header = [0, 0, 0, 2, 0, 0, 0, height, 8, kind, 0, 0, 0];
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&lines.concat()).expect("memory");
        let data = packer.finish().expect("memory");
        let (first, second) = data.split_at(data.len() / 2);
        [
            SIGNATURE.to_vec(),
            chunk(b"IHDR", &header),
            chunk(b"IDAT", first),
            chunk(b"IDAT", second),
            chunk(b"IEND", &[]),
        ]
        .concat()
    }

    #[test]
    fn each_filter_is_undone() {
        let lines: [&[u8]; 5] = [
            &[0, 10, 10, 10, 20, 20, 20],
            &[1, 10, 10, 10, 10, 10, 10],
            &[2, 0, 0, 0, 0, 0, 0],
            &[3, 5, 5, 5, 5, 5, 5],
            &[4, 0, 0, 0, 5, 5, 5],
        ];
        let picture = GreyPicture::decode(&png(2, &lines)).expect("a picture");
        assert_eq!((picture.width, picture.height), (2, 5));
        assert_eq!(picture.luma, [10, 20, 10, 20, 10, 20, 10, 20, 10, 25]);
    }

    #[test]
    fn alpha_is_left_out_and_colours_are_weighed() {
        let lines: [&[u8]; 1] = [&[0, 255, 0, 0, 7, 0, 255, 0, 9]];
        let picture = GreyPicture::decode(&png(6, &lines)).expect("a picture");
        assert_eq!(picture.luma, [76, 149]);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let good = png(2, &[&[0; 7]]);
        assert!(GreyPicture::decode(&good).is_some());
        for bad in [
            &b"GIF89a"[..],
            &good[..good.len() - 20],
            &png(3, &[&[0; 7]]),
            &png(2, &[&[9; 7]]),
            &png(2, &[&[0; 6]]),
        ] {
            assert_eq!(GreyPicture::decode(bad), None);
        }
    }
}
