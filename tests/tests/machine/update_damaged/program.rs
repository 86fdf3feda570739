//! A program that is damaged in one way.

use std::ops::Range;

use memchr::memmem;

use crate::power::CampaignRng;
use crate::update::program::{PE_POINTER_AT, section};

/// Where the script for GRUB begins, and so where the boot stub ends.
const STUB_END: usize = 256 << 10;
/// Bytes of the headers before the sections.
const HEADERS_END: usize = 1024;
/// The first line of the script for GRUB, and the variable by which an older loader only asks whether there is one.
const SCRIPT_BEGIN: &[u8] = b"set alknet_found=1\n";
const PROBE: &[u8] = b"alknet_probe";
/// PE machine of 64-bit ARM, and where the header has it (PE/COFF specification, "COFF File Header").
const ARM_64: u16 = 0xaa64;
const MACHINE_AT: usize = 4;
/// Most bits that are flipped, most bytes that are set to zero, and most bytes of a program of random ones.
const BITS_MAX: usize = 16;
const ZEROS_MAX: usize = 1 << 20;
const RANDOM_MAX: usize = 4 << 20;

/// What is wrong with a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramDamage {
    /// The file has no bytes.
    Empty,
    /// The file ends early.
    Truncated,
    /// Random bytes, and no program.
    Random,
    /// Random bytes behind the mark of a program.
    RandomBehindMark,
    /// The header says that it is for another processor.
    OtherArchitecture,
    /// A few bits are flipped: in the headers, in the boot stub, or in a section.
    BitsOfHeaders,
    BitsOfStub,
    BitsOfScript,
    BitsOfCommandLine,
    BitsOfKernel,
    BitsOfFiles,
    /// The script for GRUB starts the program wherever it runs.
    ScriptWithoutProbe,
    /// Zeros lie in the place of some bytes: anywhere, or in a section.
    Zeros,
    ZerosOfKernel,
    ZerosOfFiles,
    /// Random bytes lie in the place of a whole section.
    RandomKernel,
    RandomFiles,
}

impl ProgramDamage {
    /// The program `base` with this damage.
    pub(super) fn damage(self, base: &[u8], dice: &mut CampaignRng) -> Vec<u8> {
        let mut program = base.to_vec();
        match self {
            Self::Empty => program.clear(),
            Self::Truncated => program.truncate(dice.below(base.len())),
            Self::Random => program = random(dice.below(RANDOM_MAX), dice),
            Self::RandomBehindMark => {
                program = [&b"MZ"[..], &random(dice.below(RANDOM_MAX), dice)].concat();
            }
            Self::OtherArchitecture => {
                let pe = u32_at(base, PE_POINTER_AT) + MACHINE_AT;
                program[pe..pe + 2].copy_from_slice(&ARM_64.to_le_bytes());
            }
            Self::BitsOfHeaders => flip(&mut program, 0..HEADERS_END, dice),
            Self::BitsOfStub => flip(&mut program, HEADERS_END..STUB_END, dice),
            Self::BitsOfScript => flip(&mut program, script(base), dice),
            Self::BitsOfCommandLine => flip(&mut program, raw(base, b".cmdline"), dice),
            Self::BitsOfKernel => flip(&mut program, raw(base, b".linux\0\0"), dice),
            Self::BitsOfFiles => flip(&mut program, raw(base, b".initrd\0"), dice),
            Self::ScriptWithoutProbe => {
                let script = script(base);
                let at = memmem::find(&base[script.clone()], PROBE).expect("it asks");
                // Another letter: the variable has no value.
                program[script.start + at + PROBE.len() - 1] ^= 1;
            }
            Self::Zeros => clear(&mut program, 0..base.len(), dice),
            Self::ZerosOfKernel => clear(&mut program, raw(base, b".linux\0\0"), dice),
            Self::ZerosOfFiles => clear(&mut program, raw(base, b".initrd\0"), dice),
            Self::RandomKernel => fill(&mut program, raw(base, b".linux\0\0"), dice),
            Self::RandomFiles => fill(&mut program, raw(base, b".initrd\0"), dice),
        }
        program
    }
}

/// Where a section lies in the file, without the zeros behind it.
fn raw(program: &[u8], name: &[u8; 8]) -> Range<usize> {
    let section = section(program, name);
    section.raw.start..section.raw.start + section.bytes
}

/// The script for GRUB without the line feeds behind it.
fn script(program: &[u8]) -> Range<usize> {
    let all = raw(program, b".grubcfg");
    let begin = memmem::find(&program[all.clone()], SCRIPT_BEGIN).expect("its first line");
    let begin = all.start + begin;
    let end = program[begin..all.end]
        .iter()
        .rposition(|byte| *byte != b'\n');
    begin..begin + end.expect("it has text") + 1
}

fn flip(bytes: &mut [u8], within: Range<usize>, dice: &mut CampaignRng) {
    for _ in 0..=dice.below(BITS_MAX) {
        let at = within.start + dice.below(within.len());
        bytes[at] ^= 1 << dice.below(8);
    }
}

fn clear(bytes: &mut [u8], within: Range<usize>, dice: &mut CampaignRng) {
    let begin = within.start + dice.below(within.len());
    let end = (begin + 1 + dice.below(ZEROS_MAX)).min(within.end);
    bytes[begin..end].fill(0);
}

fn fill(bytes: &mut [u8], within: Range<usize>, dice: &mut CampaignRng) {
    let random = random(within.len(), dice);
    bytes[within].copy_from_slice(&random);
}

/// So many random bytes.
pub(super) fn random(length: usize, dice: &mut CampaignRng) -> Vec<u8> {
    let words = (0..length.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes());
    words.take(length).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    let four = bytes[at..].first_chunk().expect("within the file");
    usize::try_from(u32::from_le_bytes(*four)).expect("a usize has 64 bits")
}
