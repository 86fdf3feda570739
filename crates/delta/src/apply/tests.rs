//! Deltas between small programs, and hostile ones: each is refused for its reason, and writes no byte too much.

use proptest::prelude::*;
use zstd::stream::write::Encoder;

use super::*;
use crate::limits::RECIPE_BYTES_MAX;
use crate::make::{NewProgram, OldProgram, make_delta};
use crate::wire::{put_varint, zigzag};

const KERNEL: &[u8] = b"a kernel, and what a loader reads before it";
const RECIPE: FrameRecipe = FrameRecipe::INITRAMFS;

/// A program with this initial file system, and where its frame lies.
fn packed(before: &[u8], archive: &[u8], behind: &[u8]) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut program = before.to_vec();
    RECIPE.compress(archive, &mut program).expect("into memory");
    let frame = before.len()..program.len();
    program.extend_from_slice(behind);
    (program, frame)
}

/// Code whose addresses shift from one build to the next.
fn code(seed: u32, bytes: usize) -> Vec<u8> {
    let words = (0..bytes as u32 / 4).map(|at| {
        let hash = (at.wrapping_add(7)).wrapping_mul(2_654_435_761) >> 12;
        match at % 16 {
            0 => hash ^ seed,
            5 => at.wrapping_mul(4).wrapping_add(seed),
            _ => hash,
        }
    });
    words.flat_map(u32::to_le_bytes).collect()
}

fn delta(old: (&[u8], usize, &[u8]), new: (&[u8], std::ops::Range<usize>, &[u8])) -> Vec<u8> {
    let old = OldProgram {
        program: old.0,
        before: old.1,
        init: old.2,
    };
    let new = NewProgram {
        program: new.0,
        frame: new.1,
        archive: new.2,
        recipe: RECIPE,
    };
    make_delta(&old, &new).expect("a delta")
}

/// Of the second pair nearly all bytes are in long runs.
#[test]
fn a_program_is_made_from_the_one_before_with_few_bytes() {
    let old = code(0, 3 << 20);
    let mut like = old.clone();
    like.splice(1_000_000..1_000_010, *b"an instruction more");
    for new in [code(40, (3 << 20) + 400), like] {
        few_bytes_make(&old, &new);
    }
}

fn few_bytes_make(old: &[u8], new: &[u8]) {
    let (running, _) = packed(KERNEL, old, b"");
    let (next, frame) = packed(b"another kernel", new, b"a signature");
    let delta = delta((&running, KERNEL.len(), old), (&next, frame, new));
    assert!(
        delta.len() * 8 < next.len(),
        "{} of {}",
        delta.len(),
        next.len()
    );
    let base = OldProgram {
        program: &running,
        before: KERNEL.len(),
        init: old,
    };
    let mut made = Vec::new();
    apply_delta(&*delta, &base, next.len() as u64, &mut made).expect("it fits");
    assert!(made == next);
}

/// More likenesses of a dozen bytes than a delta may have pieces.
#[test]
fn programs_with_many_short_likenesses_have_a_delta() {
    let old = code(0, 1 << 20);
    let count = PIECES_MAX as usize + 10_000;
    let mut new = Vec::new();
    for at in 0..count {
        let from = at.wrapping_mul(2_654_435_761) % (old.len() - 16);
        new.extend_from_slice(&old[from..from + 11]);
    }
    let (running, _) = packed(KERNEL, &old, b"");
    let (next, frame) = packed(KERNEL, &new, b"");
    let delta = delta((&running, KERNEL.len(), &old), (&next, frame, &new));
    assert!(delta.len() < new.len(), "{}", delta.len());
}

proptest! {
    // Each case has tables of 16 MiB cleared, twice.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_program_is_made_from_any_other(
        before in proptest::collection::vec(any::<u8>(), 0..300),
        old in proptest::collection::vec(0_u8..6, 0..3000),
        new in proptest::collection::vec(0_u8..6, 0..3000),
        behind in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let (running, _) = packed(&before, &old, b"");
        let (next, frame) = packed(&behind, &new, &before);
        let delta = delta((&running, before.len(), &old), (&next, frame, &new));
        let base = OldProgram { program: &running, before: before.len(), init: &old };
        let mut made = Vec::new();
        apply_delta(&*delta, &base, next.len() as u64, &mut made).expect("it fits");
        prop_assert!(made == next);
    }
}

/// A delta with these items, for the base of [`applied`].
fn hostile(items: &[u8]) -> Vec<u8> {
    hostile_for(items, 100)
}

fn hostile_for(items: &[u8], result_bytes: u64) -> Vec<u8> {
    let mut delta = Vec::new();
    let header = DeltaHeader {
        library: library_version(),
        program_bytes: 10,
        init_bytes: 20,
        result_bytes,
    };
    header.write(&mut delta).expect("into memory");
    let mut encoder = Encoder::new(delta, 1).expect("memory");
    encoder.write_all(items).expect("into memory");
    encoder.finish().expect("into memory")
}

/// What comes of a delta for a program of 100 bytes, on a base of 10 and 20 bytes.
fn applied(delta: &[u8]) -> (Result<(), DeltaError>, Vec<u8>) {
    applied_for(delta, 100)
}

fn applied_for(delta: &[u8], bytes: u64) -> (Result<(), DeltaError>, Vec<u8>) {
    let base = OldProgram {
        program: b"0123456789 and the rest",
        before: 10,
        init: b"abcdefghijklmnopqrst",
    };
    let mut made = Vec::new();
    let result = apply_delta(delta, &base, bytes, &mut made);
    assert!(made.len() as u64 <= bytes, "{} bytes", made.len());
    (result, made)
}

fn refusal(items: &[u8]) -> String {
    let (result, _) = applied(&hostile(items));
    result.expect_err("refused").to_string()
}

/// A group of pieces: of each its bytes and, for a copy, the step to its place.
fn group(pieces: &[(u64, Option<i64>)], bytes: usize) -> Vec<u8> {
    let mut items = vec![GROUP];
    put_varint(&mut items, pieces.len() as u64);
    for (length, step) in pieces {
        put_varint(&mut items, length << 1 | u64::from(step.is_some()));
        if let Some(step) = step {
            put_varint(&mut items, zigzag(*step));
        }
    }
    items.resize(items.len() + bytes, 0);
    items
}

fn frame(recipe: FrameRecipe, bytes: u64) -> Vec<u8> {
    let mut items = vec![FRAME_BEGINS];
    recipe.put(&mut items);
    items.extend(bytes.to_le_bytes());
    items
}

#[test]
fn a_copy_may_reach_from_the_program_into_init() {
    let mut items = group(&[(14, Some(6)), (86, None)], 100);
    items.push(END);
    let (result, made) = applied(&hostile(&items));
    result.expect("it fits");
    assert_eq!(&made[..14], b"6789abcdefghij");
}

#[test]
fn places_outside_of_the_base_are_refused() {
    let outside = "a piece of the delta lies outside of the program that runs";
    for (bytes, step) in [
        (1, 30),
        (31, 0),
        (1, -1),
        (1, i64::MAX),
        (1, i64::MIN),
        (5, 26),
    ] {
        assert_eq!(
            refusal(&group(&[(bytes, Some(step))], 40)),
            outside,
            "{bytes} {step}"
        );
    }
    // The step counts from the end of the copy before.
    assert_eq!(refusal(&group(&[(30, Some(0)), (1, Some(0))], 40)), outside);
}

#[test]
fn a_delta_ends_with_its_program() {
    assert_eq!(
        refusal(&group(&[(101, None)], 101)),
        "the delta makes more than the 100 bytes of the program"
    );
    let mut short = group(&[(99, None)], 99);
    short.push(END);
    assert_eq!(
        refusal(&short),
        "the delta makes fewer than the 100 bytes of the program"
    );
    let cut = refusal(&group(&[(50, None)], 49));
    assert!(
        cut.starts_with("the delta cannot be read to its end"),
        "{cut}"
    );
    let cut = refusal(&group(&[(100, None)], 100));
    assert!(
        cut.starts_with("the delta cannot be read to its end"),
        "{cut}"
    );
    assert_eq!(
        refusal(&[9]),
        "the file has no delta, or one of a later form"
    );
}

/// A delta that would run for ever, or fill memory, is short.
#[test]
fn a_bomb_is_refused() {
    assert_eq!(
        refusal(&group(&[], 0)),
        "a piece of the delta makes no bytes"
    );
    assert_eq!(
        refusal(&group(&[(0, Some(0))], 0)),
        "a piece of the delta makes no bytes"
    );
    let group_limit = "a group has more than 8192 pieces or 524288 bytes";
    assert_eq!(
        refusal(&group(&[(GROUP_BYTES_MAX + 1, None)], 0)),
        group_limit
    );
    assert_eq!(refusal(&group(&[(u64::MAX >> 1, None); 3], 0)), group_limit);
    let mut many = vec![GROUP];
    put_varint(&mut many, GROUP_PIECES_MAX + 1);
    assert_eq!(refusal(&many), group_limit);
    // A frame compresses what fills it to nothing, so the result does not bound the time.
    let mut endless = frame(RECIPE, UNPACKED_BYTES_MAX);
    let full = group(&[(GROUP_BYTES_MAX, None)], GROUP_BYTES_MAX as usize);
    let groups = UNPACKED_BYTES_MAX / GROUP_BYTES_MAX;
    let step = vec![(1, None); GROUP_PIECES_MAX as usize];
    let pieces = group(&step, GROUP_PIECES_MAX as usize);
    let mut small = endless.clone();
    for _ in 0..=PIECES_MAX / GROUP_PIECES_MAX {
        small.extend_from_slice(&pieces);
    }
    assert_eq!(refusal(&small), "the delta has more than 262144 pieces");
    for _ in 0..groups {
        endless.extend_from_slice(&full);
    }
    endless.push(FRAME_ENDS);
    endless.extend_from_slice(&group(&[(1, None)], 1));
    let (result, _) = applied_for(&hostile_for(&endless, 1 << 20), 1 << 20);
    assert_eq!(
        result.expect_err("refused").to_string(),
        "the delta makes more than 268435456 bytes before they are compressed"
    );
}

#[test]
fn frames_have_limits_and_an_end() {
    let refused = |parts: &[Vec<u8>]| refusal(&parts.concat());
    let content = group(&[(10, None)], 10);
    let end = vec![FRAME_ENDS];
    let begin = || frame(RECIPE, 10);
    assert_eq!(
        refused(&[begin(), begin()]),
        "a compressed frame of the delta begins within another one"
    );
    assert_eq!(
        refused(std::slice::from_ref(&end)),
        "a compressed frame of the delta ends without a beginning"
    );
    assert_eq!(
        refused(&[begin(), content.clone(), vec![END]]),
        "a compressed frame of the delta does not end"
    );
    assert_eq!(
        refused(&[begin(), content.clone(), content.clone()]),
        "a compressed frame of the delta has more bytes than it says"
    );
    assert_eq!(
        refused(&[begin(), end.clone()]),
        "a compressed frame of the delta has fewer bytes than it says"
    );
    assert_eq!(
        refused(&[frame(RECIPE, UNPACKED_BYTES_MAX + 1)]),
        "the delta makes more than 268435456 bytes before they are compressed"
    );
    let empty = [frame(RECIPE, 0), end].concat();
    let many = empty.repeat(FRAMES_MAX as usize + 1);
    assert_eq!(
        refusal(&many),
        "the delta has more than 4 compressed frames"
    );
    let large = FrameRecipe {
        window_log: 22,
        hash_log: 22,
        ..RECIPE
    };
    assert!(large.memory_bytes() > RECIPE_BYTES_MAX);
    assert_eq!(
        refused(&[frame(large, 10)]),
        "the recipe of a compressed frame is out of range: its memory"
    );
}

#[test]
fn another_base_or_library_is_refused_before_anything_is_written() {
    let good = hostile(&group(&[(100, None)], 100));
    let changed = |at: usize, byte: u8| {
        let mut delta = good.clone();
        delta[at] = byte;
        let (result, made) = applied(&delta);
        assert!(made.is_empty());
        result.expect_err("refused").to_string()
    };
    assert_eq!(
        changed(0, 0),
        "the file has no delta, or one of a later form"
    );
    assert_eq!(
        changed(15, 2),
        "the file has no delta, or one of a later form"
    );
    let other = "the delta is for another program than the one that runs";
    assert_eq!(changed(20, 24), other);
    assert_eq!(changed(28, 19), other);
    let (fewer, more) = (changed(36, 99), changed(36, 101));
    assert_eq!(
        fewer,
        "the delta makes fewer than the 100 bytes of the program"
    );
    assert_eq!(
        more,
        "the delta makes more than the 100 bytes of the program"
    );
    let library = changed(16, 0);
    let here = library_version();
    assert_eq!(
        library,
        format!(
            "the delta is for Zstandard {}, and this program has Zstandard {here}",
            here & !0xff
        )
    );
}

#[test]
fn a_window_larger_than_the_limit_is_refused() {
    let mut delta = hostile(&[]);
    delta.truncate(44);
    let mut encoder = Encoder::new(delta, 1).expect("memory");
    encoder
        .window_log(DELTA_WINDOW_LOG_MAX + 1)
        .expect("in range");
    let mut items = group(&[(100, None)], 100);
    items.push(END);
    encoder.write_all(&items).expect("into memory");
    let (result, _) = applied(&encoder.finish().expect("into memory"));
    assert!(matches!(result, Err(DeltaError::Delta(_))), "{result:?}");
}

/// The caller is asked before each group, also within a frame whose compressor keeps what it gets.
#[test]
fn a_program_that_is_given_up_ends_within_a_group() {
    struct GivingUp(std::cell::Cell<u32>);
    impl DeltaBase for GivingUp {
        fn program_bytes(&self) -> u64 {
            10
        }
        fn init_bytes(&self) -> u64 {
            20
        }
        fn read_program(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn read_init(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn is_given_up(&self) -> bool {
            self.0.set(self.0.get() - 1);
            self.0.get() == 0
        }
    }
    let groups = [(); 3].map(|()| group(&[(10, None)], 10)).concat();
    let mut framed = frame(RECIPE, 30);
    framed.extend(&groups);
    framed.push(FRAME_ENDS);
    for (items, made_bytes) in [(groups, 20), (framed, 0)] {
        let mut made = Vec::new();
        let base = GivingUp(3.into());
        let result = apply_delta(&*hostile(&items), &base, 100, &mut made);
        assert!(matches!(result, Err(DeltaError::GivenUp)), "{result:?}");
        assert_eq!(made.len(), made_bytes);
    }
}

#[test]
fn a_disk_that_fails_is_the_reason() {
    struct FullDisk;
    impl Write for FullDisk {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("no room"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut framed = frame(RECIPE, 10);
    framed.extend(group(&[(10, None)], 10));
    framed.push(FRAME_ENDS);
    for items in [group(&[(100, None)], 100), framed] {
        let base = OldProgram {
            program: b"0123456789",
            before: 10,
            init: &[0; 20],
        };
        let result = apply_delta(&*hostile(&items), &base, 100, &mut FullDisk);
        assert!(matches!(result, Err(DeltaError::Output(_))), "{result:?}");
    }
}

proptest! {
    /// A changed delta ends in an error or in another program, and never in a panic.
    #[test]
    fn no_items_make_it_panic(items in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = applied(&hostile(&items));
        let _ = applied(&items);
    }
}
