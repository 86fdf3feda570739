//! Makes a delta on a build machine, and tries it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::ops::Range;

use bidiff::DiffParams;
use zstd::stream::write::Encoder;

use crate::apply::{DeltaBase, apply_delta};
use crate::error::{DeltaError, DeltaMakingError};
use crate::limits::{DELTA_WINDOW_LOG_MAX, GROUP_BYTES_MAX, GROUP_PIECES_MAX, PIECES_MAX};
use crate::recipe::{FrameRecipe, library_version};
use crate::runs::shared_runs;
use crate::wire::{DeltaHeader, END, FRAME_BEGINS, FRAME_ENDS, GROUP, put_varint, zigzag};

/// Level of the delta's own compression.
const LEVEL: i32 = 19;
/// Window of that, as a power of two. The largest that machines take makes a delta 0.4 % shorter, for 3 MiB of their
/// memory.
const WINDOW_LOG: u32 = 20;
const _: () = assert!(WINDOW_LOG <= DELTA_WINDOW_LOG_MAX);

/// Bytes outside of the runs that both programs share, up to which nothing is searched for them.
const GAPS_BYTES_MAX: usize = 64 << 10;

/// Shortest copy. A shorter one takes about as many bytes for its place as it saves, and machines take few pieces.
/// `docs/performance.md` has what other lengths give.
const COPY_BYTES_MIN: usize = 48;

/// Pieces up to which all copies are kept. Groups and frames divide some of them, which is far from the other half.
const PIECES_AIM: usize = PIECES_MAX as usize / 2;

/// The program that a delta starts from, in memory.
#[derive(Clone, Copy, Debug)]
pub struct OldProgram<'a> {
    /// The file.
    pub program: &'a [u8],
    /// Bytes of the file before its compressed initial file system.
    pub before: usize,
    /// The file `/init` in that.
    pub init: &'a [u8],
}

/// The program that a delta makes.
#[derive(Clone, Debug)]
pub struct NewProgram<'a> {
    /// The file.
    pub program: &'a [u8],
    /// Where the compressed initial file system lies, without what pads it.
    pub frame: Range<usize>,
    /// Its content.
    pub archive: &'a [u8],
    /// How it was compressed.
    pub recipe: FrameRecipe,
}

impl DeltaBase for OldProgram<'_> {
    fn program_bytes(&self) -> u64 {
        self.program.len() as u64
    }

    fn init_bytes(&self) -> u64 {
        self.init.len() as u64
    }

    fn read_program(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        read_from(self.program, buffer, at)
    }

    fn read_init(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        read_from(self.init, buffer, at)
    }
}

fn read_from(content: &[u8], buffer: &mut [u8], at: u64) -> io::Result<()> {
    let at = usize::try_from(at).ok();
    let piece = at.and_then(|at| content.get(at..)?.get(..buffer.len()));
    let piece = piece.ok_or(io::ErrorKind::UnexpectedEof)?;
    buffer.copy_from_slice(piece);
    Ok(())
}

/// Makes the delta between two programs, and makes the new program by it once.
///
/// Sorting takes about nine times the memory of the old parts, and a minute for 80 MB.
///
/// # Errors
/// The frame of the new program cannot be made again, both programs differ too much, or writing fails.
pub fn make_delta(old: &OldProgram<'_>, new: &NewProgram<'_>) -> Result<Vec<u8>, DeltaMakingError> {
    let mut frame = Vec::new();
    new.recipe.compress(new.archive, &mut frame)?;
    let known = new.program.get(new.frame.clone());
    if known != Some(&*frame) {
        return Err(DeltaMakingError::Frame);
    }
    drop(frame);
    let base = [&old.program[..old.before], old.init].concat();
    let parts = [
        &new.program[..new.frame.start],
        new.archive,
        &new.program[new.frame.end..],
    ];
    let header = DeltaHeader {
        library: library_version(),
        program_bytes: old.before as u64,
        init_bytes: old.init.len() as u64,
        result_bytes: new.program.len() as u64,
    };
    let mut delta = Vec::new();
    header.write(&mut delta)?;
    let mut items = Encoder::new(delta, LEVEL)?;
    items.window_log(WINDOW_LOG)?;
    write_items(&base, parts, new.recipe, &mut items)?;
    let delta = items.finish()?;
    check(&delta, old, new.program)?;
    Ok(delta)
}

/// Makes the new program as a machine does.
fn check(delta: &[u8], old: &OldProgram<'_>, program: &[u8]) -> Result<(), DeltaMakingError> {
    let mut made = Vec::with_capacity(program.len());
    let applied = apply_delta(delta, old, program.len() as u64, &mut made);
    match applied {
        Ok(()) if made == program => Ok(()),
        Ok(()) => Err(DeltaMakingError::Other),
        Err(error @ (DeltaError::Pieces | DeltaError::Unpacked)) => {
            Err(DeltaMakingError::TooLarge(error))
        }
        Err(error) => Err(DeltaMakingError::Check(error)),
    }
}

fn write_items(
    base: &[u8],
    parts: [&[u8]; 3],
    recipe: FrameRecipe,
    items: &mut dyn Write,
) -> io::Result<()> {
    let whole = parts.concat();
    let borders = [parts[0].len(), parts[0].len() + parts[1].len()];
    let frame = frame_begins(recipe, parts[1].len());
    let mut writer = PartsWriter {
        groups: GroupWriter {
            base,
            whole: &whole,
            items,
            pieces: Vec::new(),
            count: 0,
            differences: Vec::new(),
            others: Vec::new(),
            expected: 0,
            done: 0,
        },
        markers: [(borders[0], frame), (borders[1], vec![FRAME_ENDS])].into(),
    };
    let runs = shared_runs(base, &whole);
    let shared: usize = runs.iter().map(|run| run.bytes).sum();
    if whole.len() - shared <= GAPS_BYTES_MAX {
        for run in runs {
            writer.put(writer.groups.done..run.new, None)?;
            writer.put(run.new..run.new + run.bytes, Some(run.old))?;
        }
    } else {
        for (range, from) in few(&search(base, &whole)) {
            writer.put(range, from)?;
        }
    }
    // What the search left out, if it did.
    writer.put(writer.groups.done..whole.len(), None)?;
    writer.finish()
}

/// A piece of the new parts, and where it lies in the base if it is to be copied from there.
type FoundPiece = (Range<usize>, Option<usize>);

/// Finds pieces of the base that are like pieces of the new parts.
fn search(base: &[u8], whole: &[u8]) -> Vec<FoundPiece> {
    let mut found = Vec::new();
    let searched = bidiff::diff(base, whole, &DiffParams::default(), |like| {
        let copied = like.add_new_start..like.copy_start();
        found.push((copied, Some(like.add_old_start)));
        found.push((like.copy_start()..like.copy_end, None));
        Ok::<_, Infallible>(())
    });
    let Ok(()) = searched;
    found.retain(|(range, _)| !range.is_empty());
    found
}

/// As many of the copies as machines take pieces.
fn few(found: &[FoundPiece]) -> Vec<FoundPiece> {
    let mut shortest = COPY_BYTES_MIN;
    loop {
        let pieces = joined(found, shortest);
        if pieces.len() <= PIECES_AIM {
            return pieces;
        }
        shortest *= 2;
    }
}

/// The pieces with copies of fewer bytes than `shortest` written as they are, and what is written as it is in one piece.
fn joined(found: &[FoundPiece], shortest: usize) -> Vec<FoundPiece> {
    let mut pieces: Vec<FoundPiece> = Vec::new();
    for (range, from) in found {
        let from = from.filter(|_| range.len() >= shortest);
        match pieces.last_mut() {
            Some((last, None)) if from.is_none() => last.end = range.end,
            _ => pieces.push((range.clone(), from)),
        }
    }
    pieces
}

fn frame_begins(recipe: FrameRecipe, bytes: usize) -> Vec<u8> {
    let mut marker = vec![FRAME_BEGINS];
    recipe.put(&mut marker);
    marker.extend((bytes as u64).to_le_bytes());
    marker
}

/// Writes the pieces of all parts, and between the parts where a frame begins and ends.
struct PartsWriter<'a> {
    groups: GroupWriter<'a>,
    /// Items, and the byte of the parts before which each stands.
    markers: VecDeque<(usize, Vec<u8>)>,
}

impl PartsWriter<'_> {
    /// Adds a piece that follows the one before, copied from this place of the base or written as it is.
    fn put(&mut self, mut range: Range<usize>, mut from: Option<usize>) -> io::Result<()> {
        while !range.is_empty() {
            let border = self.markers.front().map(|(at, _)| *at);
            if border == Some(range.start) {
                self.mark()?;
                continue;
            }
            let end = range.end.min(border.unwrap_or(range.end));
            self.groups.piece(range.start..end, from)?;
            from = from.map(|from| from + end - range.start);
            range.start = end;
        }
        Ok(())
    }

    fn mark(&mut self) -> io::Result<()> {
        self.groups.end_group()?;
        match self.markers.pop_front() {
            Some((_, marker)) => self.groups.items.write_all(&marker),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.groups.end_group()?;
        while !self.markers.is_empty() {
            self.mark()?;
        }
        self.groups.items.write_all(&[END])
    }
}

/// Collects pieces until a group is full.
struct GroupWriter<'a> {
    base: &'a [u8],
    whole: &'a [u8],
    items: &'a mut dyn Write,
    pieces: Vec<u8>,
    count: u64,
    differences: Vec<u8>,
    others: Vec<u8>,
    /// The end of the last copy in the base.
    expected: u64,
    /// Bytes of the result that are in pieces.
    done: usize,
}

impl GroupWriter<'_> {
    /// Adds a piece of the result, copied from this place of the base or written as it is.
    fn piece(&mut self, mut range: Range<usize>, mut from: Option<usize>) -> io::Result<()> {
        while !range.is_empty() {
            let used = self.differences.len() + self.others.len();
            let room = GROUP_BYTES_MAX as usize - used;
            if room == 0 || self.count == GROUP_PIECES_MAX {
                self.end_group()?;
                continue;
            }
            let end = range.end.min(range.start + room);
            self.small_piece(range.start..end, from);
            from = from.map(|from| from + end - range.start);
            range.start = end;
        }
        Ok(())
    }

    fn small_piece(&mut self, range: Range<usize>, from: Option<usize>) {
        let head = (range.len() as u64) << 1;
        self.count += 1;
        self.done = range.end;
        let new = &self.whole[range];
        match from {
            Some(from) => {
                let step = from as i64 - self.expected as i64;
                put_varint(&mut self.pieces, head | 1);
                put_varint(&mut self.pieces, zigzag(step));
                self.expected = (from + new.len()) as u64;
                let old = &self.base[from..from + new.len()];
                let pairs = new.iter().zip(old);
                self.differences
                    .extend(pairs.map(|(new, old)| new.wrapping_sub(*old)));
            }
            None => {
                put_varint(&mut self.pieces, head);
                self.others.extend_from_slice(new);
            }
        }
    }

    fn end_group(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let mut head = vec![GROUP];
        put_varint(&mut head, self.count);
        self.items.write_all(&head)?;
        for part in [&mut self.pieces, &mut self.differences, &mut self.others] {
            self.items.write_all(part)?;
            part.clear();
        }
        self.count = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_copies_are_written_as_they_are() {
        let least = COPY_BYTES_MIN;
        let found = [
            (0..100, Some(7)),
            (100..103, None),
            (103..103 + least - 1, Some(9_000)),
            (103 + least - 1..200, None),
            (200..200 + least, Some(500)),
        ];
        let kept = [
            (0..100, Some(7)),
            (100..200, None),
            (200..200 + least, Some(500)),
        ];
        assert_eq!(few(&found), kept);
        assert_eq!(few(&found[2..3]), [(103..103 + least - 1, None)]);
        assert_eq!(few(&[]), []);
    }

    /// Each copy is long enough, but machines do not take so many.
    #[test]
    fn of_too_many_copies_the_longest_are_kept() {
        let (short, long) = (COPY_BYTES_MIN, 2 * COPY_BYTES_MIN);
        let found: Vec<_> = (0..PIECES_AIM / 2)
            .map(|at| at * (2 * short + long))
            .flat_map(|at| {
                let (second, third) = (at + short, at + 2 * short);
                let copies = [at..second, second..third, third..third + long];
                copies.map(|range| (range.clone(), Some(range.start + 1)))
            })
            .collect();
        let pieces = few(&found);
        assert_eq!(pieces.len(), PIECES_AIM);
        for pair in pieces.chunks(2) {
            let [(between, None), (copied, Some(_))] = pair else {
                panic!("{pair:?}");
            };
            assert_eq!((between.len(), copied.len()), (2 * short, long));
        }
    }
}
