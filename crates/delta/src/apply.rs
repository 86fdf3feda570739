//! Makes the new program on a machine, from the one that runs and a delta that streams by.

use std::cmp::Ordering;
use std::io::{self, BufReader, Read, Write};
use std::mem;

use zstd::stream::write::Encoder;

use crate::error::DeltaError;
use crate::limits::{
    DELTA_WINDOW_LOG_MAX, FRAMES_MAX, GROUP_BYTES_MAX, GROUP_PIECES_MAX, PIECES_MAX,
    UNPACKED_BYTES_MAX,
};
use crate::recipe::{FrameRecipe, library_version};
use crate::wire::{
    DeltaHeader, END, FRAME_BEGINS, FRAME_ENDS, GROUP, read_byte, read_u64, read_varint, unzigzag,
};

/// Bytes of the base that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// The program that runs, as a delta takes pieces of it. Reads may be at any place.
pub trait DeltaBase {
    /// Bytes of the program's file.
    fn program_bytes(&self) -> u64;

    /// Bytes of the file `/init`, which is the largest one of the initial file system.
    fn init_bytes(&self) -> u64;

    /// Fills `buffer` from byte `at` of the program's file.
    ///
    /// # Errors
    /// Reading fails, or the file ends before. A base that has to read more than it gives counts what it reads, and ends
    /// with [`DeltaError::Reads`] within the error of the system.
    fn read_program(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Fills `buffer` from byte `at` of `/init`.
    ///
    /// # Errors
    /// Reading fails, or the file ends before.
    fn read_init(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Whether the caller does not want the program any more. Asked before each group of pieces, which makes at most
    /// [`GROUP_BYTES_MAX`] bytes.
    fn is_given_up(&self) -> bool {
        false
    }
}

/// Writes the new program to `output`, all of whose `result_bytes` bytes the caller compares with what was signed. Until
/// it has done so, nothing of the output may be used.
///
/// Takes the memory of the recipe ([`FrameRecipe::memory_bytes`]), the window of the delta's own compression (4 MiB) and
/// a group (1 MiB). The time is bounded by the limits of pieces and bytes.
///
/// # Errors
/// [`DeltaError`] names the reason; `output` has a part of a program then.
pub fn apply_delta(
    delta: impl Read,
    base: &dyn DeltaBase,
    result_bytes: u64,
    output: &mut dyn Write,
) -> Result<(), DeltaError> {
    let mut delta = BufReader::new(delta);
    let header = DeltaHeader::read(&mut delta).map_err(DeltaError::Delta)?;
    let header = header.ok_or(DeltaError::Form)?;
    let here = library_version();
    if header.library != here {
        return Err(DeltaError::Library {
            wanted: header.library,
            here,
        });
    }
    let is_base =
        header.program_bytes <= base.program_bytes() && header.init_bytes == base.init_bytes();
    if !is_base {
        return Err(DeltaError::OtherBase);
    }
    // This refuses most wrong deltas before the slot is written. The header may lie, so the bytes are counted below, too.
    match header.result_bytes.cmp(&result_bytes) {
        Ordering::Equal => {}
        Ordering::Greater => return Err(DeltaError::TooLong(result_bytes)),
        Ordering::Less => return Err(DeltaError::Short(result_bytes)),
    }
    let mut items = zstd::Decoder::with_buffer(delta)
        .map_err(DeltaError::Delta)?
        .single_frame();
    let bounded = items.window_log_max(DELTA_WINDOW_LOG_MAX);
    bounded.map_err(DeltaError::Delta)?;
    let output = DeltaOutput {
        output,
        left: result_bytes,
        whole: result_bytes,
    };
    let mut making = DeltaApplication {
        base,
        program_bytes: header.program_bytes,
        init_bytes: header.init_bytes,
        sink: DeltaSink::Plain(output),
        unpacked: 0,
        pieces: 0,
        frames: 0,
        expected: 0,
        buffer: vec![0; READ_BYTES],
    };
    // Small reads are many, and each of the decoder has a price.
    making.run(&mut BufReader::with_capacity(READ_BYTES, items))
}

/// The output, which takes no byte behind the end of the program.
struct DeltaOutput<'a> {
    output: &'a mut dyn Write,
    left: u64,
    whole: u64,
}

impl Write for DeltaOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other(DeltaError::TooLong(self.whole)))?;
        let written = self.output.write_all(bytes);
        written.map_err(|error| io::Error::other(DeltaError::Output(error)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where bytes go.
enum DeltaSink<'a> {
    /// Into a frame that is compressed, which needs so many bytes more.
    Frame(Box<Encoder<'static, DeltaOutput<'a>>>, u64),
    /// While it becomes another one.
    Gone,
    Plain(DeltaOutput<'a>),
}

impl DeltaSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        let written = match self {
            Self::Frame(encoder, left) => {
                let rest = left.checked_sub(bytes.len() as u64);
                *left = rest.ok_or(DeltaError::Frame("has more bytes than it says"))?;
                encoder.write_all(bytes)
            }
            Self::Gone => Ok(()),
            Self::Plain(output) => output.write_all(bytes),
        };
        written.map_err(|error| DeltaError::through(error, DeltaError::Output))
    }
}

/// A piece of the result.
#[derive(Clone, Copy, Debug)]
struct DeltaPiece {
    bytes: usize,
    /// Where the bytes lie in the base, to which differences are added.
    copied_from: Option<u64>,
}

struct DeltaApplication<'a> {
    base: &'a dyn DeltaBase,
    program_bytes: u64,
    init_bytes: u64,
    sink: DeltaSink<'a>,
    unpacked: u64,
    pieces: u64,
    frames: u64,
    /// The end of the last copy in the base.
    expected: u64,
    /// For bytes of the base, of which most pieces need few.
    buffer: Vec<u8>,
}

impl DeltaApplication<'_> {
    fn run(&mut self, items: &mut dyn Read) -> Result<(), DeltaError> {
        loop {
            match read_byte(items).map_err(DeltaError::Delta)? {
                END => return self.end(),
                GROUP => self.group(items)?,
                FRAME_BEGINS => self.begin_frame(items)?,
                FRAME_ENDS => self.end_frame()?,
                _ => return Err(DeltaError::Form),
            }
        }
    }

    fn end(&self) -> Result<(), DeltaError> {
        match &self.sink {
            DeltaSink::Plain(output) if output.left == 0 => Ok(()),
            DeltaSink::Plain(output) => Err(DeltaError::Short(output.whole)),
            DeltaSink::Frame(..) | DeltaSink::Gone => Err(DeltaError::Frame("does not end")),
        }
    }

    fn begin_frame(&mut self, items: &mut dyn Read) -> Result<(), DeltaError> {
        self.frames += 1;
        if self.frames > FRAMES_MAX {
            return Err(DeltaError::Frames);
        }
        let recipe = FrameRecipe::read(items).map_err(DeltaError::Delta)?;
        let bytes = read_u64(items).map_err(DeltaError::Delta)?;
        recipe.check()?;
        if bytes > UNPACKED_BYTES_MAX {
            return Err(DeltaError::Unpacked);
        }
        let DeltaSink::Plain(output) = mem::replace(&mut self.sink, DeltaSink::Gone) else {
            return Err(DeltaError::Frame("begins within another one"));
        };
        let encoder = recipe.encoder(bytes, output).map_err(DeltaError::Output)?;
        self.sink = DeltaSink::Frame(Box::new(encoder), bytes);
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), DeltaError> {
        let DeltaSink::Frame(encoder, left) = mem::replace(&mut self.sink, DeltaSink::Gone) else {
            return Err(DeltaError::Frame("ends without a beginning"));
        };
        if left > 0 {
            return Err(DeltaError::Frame("has fewer bytes than it says"));
        }
        let output = encoder.finish();
        let output = output.map_err(|error| DeltaError::through(error, DeltaError::Output))?;
        self.sink = DeltaSink::Plain(output);
        Ok(())
    }

    fn group(&mut self, items: &mut dyn Read) -> Result<(), DeltaError> {
        if self.base.is_given_up() {
            return Err(DeltaError::GivenUp);
        }
        let (pieces, copied) = self.pieces(items)?;
        let whole: usize = pieces.iter().map(|piece| piece.bytes).sum();
        let mut bytes = vec![0; whole];
        items.read_exact(&mut bytes).map_err(DeltaError::Delta)?;
        let (mut differences, mut others) = bytes.split_at_mut(copied);
        for piece in pieces {
            match piece.copied_from {
                Some(at) => {
                    let (head, rest) = differences.split_at_mut(piece.bytes);
                    self.add_base(head, at)?;
                    self.sink.write(head)?;
                    differences = rest;
                }
                None => {
                    let (head, rest) = others.split_at_mut(piece.bytes);
                    self.sink.write(head)?;
                    others = rest;
                }
            }
        }
        Ok(())
    }

    /// Reads the pieces of a group, and returns how many bytes its copies make.
    fn pieces(&mut self, items: &mut dyn Read) -> Result<(Vec<DeltaPiece>, usize), DeltaError> {
        let count = read_varint(items).map_err(DeltaError::Delta)?;
        if count > GROUP_PIECES_MAX {
            return Err(DeltaError::Group);
        }
        if count == 0 {
            return Err(DeltaError::EmptyPiece);
        }
        self.pieces += count;
        if self.pieces > PIECES_MAX {
            return Err(DeltaError::Pieces);
        }
        let mut pieces = Vec::with_capacity(count as usize);
        let (mut copied, mut whole) = (0, 0);
        for _ in 0..count {
            let head = read_varint(items).map_err(DeltaError::Delta)?;
            let (bytes, is_copy) = (head >> 1, head & 1 == 1);
            if bytes == 0 {
                return Err(DeltaError::EmptyPiece);
            }
            // The head has 63 bits of length, so no sum overflows.
            whole += bytes;
            if whole > GROUP_BYTES_MAX {
                return Err(DeltaError::Group);
            }
            let copied_from = match is_copy {
                true => Some(self.copied_from(items, bytes)?),
                false => None,
            };
            copied += if is_copy { bytes as usize } else { 0 };
            pieces.push(DeltaPiece {
                bytes: bytes as usize,
                copied_from,
            });
        }
        self.unpacked += whole;
        match self.unpacked > UNPACKED_BYTES_MAX {
            true => Err(DeltaError::Unpacked),
            false => Ok((pieces, copied)),
        }
    }

    /// Reads where a copy lies in the base.
    fn copied_from(&mut self, items: &mut dyn Read, bytes: u64) -> Result<u64, DeltaError> {
        let step = unzigzag(read_varint(items).map_err(DeltaError::Delta)?);
        let at = self.expected.checked_add_signed(step);
        let end = at.and_then(|at| at.checked_add(bytes));
        let last = self.program_bytes + self.init_bytes;
        let end = end.filter(|end| *end <= last);
        self.expected = end.ok_or(DeltaError::OutOfBase)?;
        Ok(self.expected - bytes)
    }

    /// Adds the bytes of the base from byte `at` on to these differences.
    fn add_base(&mut self, differences: &mut [u8], mut at: u64) -> Result<(), DeltaError> {
        let (base, buffer) = (self.base, &mut self.buffer);
        let mut rest = differences;
        while !rest.is_empty() {
            let length = rest.len().min(READ_BYTES);
            let (read, length) = match self.program_bytes.checked_sub(at) {
                // A piece may begin in the program and end in /init.
                Some(before) if before > 0 => {
                    let length = length.min(usize::try_from(before).unwrap_or(length));
                    (base.read_program(&mut buffer[..length], at), length)
                }
                _ => {
                    let within = at - self.program_bytes;
                    (base.read_init(&mut buffer[..length], within), length)
                }
            };
            read.map_err(|error| DeltaError::through(error, DeltaError::Base))?;
            let (head, behind) = rest.split_at_mut(length);
            for (difference, byte) in head.iter_mut().zip(&*buffer) {
                *difference = difference.wrapping_add(*byte);
            }
            rest = behind;
            at += length as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
