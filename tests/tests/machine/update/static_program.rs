//! Small static programs for x86-64, which the kernel starts in the place of PID 1 or before it. Each makes system calls
//! of Linux with fixed arguments.

use SyscallArgument::{Data, Number, Opened, Stack};

/// Where the program lies in memory, and where its code and its data begin, counted from there.
const BASE: u32 = 0x40_0000;
const CODE_AT: usize = 120;
const DATA_AT: usize = 4096;

/// System calls, by their numbers (arch/x86/entry/syscalls/syscall_64.tbl).
const WRITE: u32 = 1;
const OPEN: u32 = 2;
const CLOSE: u32 = 3;
const MMAP: u32 = 9;
const PWRITE: u32 = 18;
const PAUSE: u32 = 34;
const NANOSLEEP: u32 = 35;
const FORK: u32 = 57;
const EXECVE: u32 = 59;
const WAIT4: u32 = 61;
const KILL: u32 = 62;
const SYSINFO: u32 = 99;
const MOUNT: u32 = 165;

/// Jumps if the last comparison said so.
const JUMP_IF_BELOW: [u8; 2] = [0x0f, 0x82];
const JUMP_IF_NOT_ZERO: [u8; 2] = [0x0f, 0x85];

const WRITE_ONLY: i32 = 1;
const SIGKILL: i32 = 9;
/// Readable and writable; private, of no file, and there at once.
const PROT_READ_WRITE: i32 = 3;
const MAP_POPULATED: i32 = 0x02 | 0x20 | 0x8000;

/// PID 1 of an image.
const INIT: &[u8] = b"/init\0";
const MEMORY_SCORE: &[u8] = b"/proc/self/oom_score_adj\0";

/// Bytes that a program takes at once.
const TAKEN_BYTES: i32 = 1 << 20;
/// What the first process leaves of the memory: less than a node needs beside another one.
const LEFT_BYTES: i32 = 48 << 20;
/// Seconds after the start of the kernel: the node serves, and has not done so for a minute yet.
const FILLS_AFTER_S: u64 = 20;
/// When the rest of the memory is filled for the first time: the first process has what it takes by then.
const FILLS_REST_AFTER_S: u64 = 40;
/// Pause between two times. A node that is started again serves for less than the minute of its gate.
const FILLS_AGAIN_AFTER_S: u64 = 40;
/// Seconds from one time to the next, first from the start of the kernel: the version has passed its gate by then.
const ENDS_NODE_EVERY_S: u64 = 240;

/// An argument of a system call.
#[derive(Clone, Copy, Debug)]
enum SyscallArgument {
    /// The address of data of the program.
    Data(u32),
    /// The descriptor of the file that was opened last. Only as the first argument.
    Opened,
    Number(i32),
    /// The address of room on the stack. Only as the first argument.
    Stack,
}

/// A program that is being made.
#[derive(Debug, Default)]
struct StaticProgram {
    code: Vec<u8>,
    data: Vec<u8>,
}

impl StaticProgram {
    /// Adds data, and returns its address.
    fn address(&mut self, bytes: &[u8]) -> u32 {
        // Addresses and numbers in it have eight bytes.
        let at = self.data.len().next_multiple_of(8);
        self.data.resize(at, 0);
        self.data.extend(bytes);
        BASE + u32::try_from(DATA_AT + at).expect("it is short")
    }

    fn data(&mut self, bytes: &[u8]) -> SyscallArgument {
        Data(self.address(bytes))
    }

    fn call(&mut self, number: u32, arguments: &[SyscallArgument]) {
        // mov edi, esi, edx, r10d, r8d and r9d.
        let moves: [&[u8]; 6] = [
            &[0xbf],
            &[0xbe],
            &[0xba],
            &[0x41, 0xba],
            &[0x41, 0xb8],
            &[0x41, 0xb9],
        ];
        for (argument, into) in arguments.iter().zip(moves) {
            match argument {
                Opened => self.code.extend([0x44, 0x89, 0xe7]), // mov edi, r12d
                Stack => self.code.extend([0x48, 0x89, 0xe7]),  // mov rdi, rsp
                Number(number) => self.code.extend([into, &number.to_le_bytes()].concat()),
                Data(address) => self.code.extend([into, &address.to_le_bytes()].concat()),
            }
        }
        self.code.push(0xb8); // mov eax, the number
        self.code.extend(number.to_le_bytes());
        self.code.extend([0x0f, 0x05]); // syscall
    }

    fn open(&mut self, path: &[u8]) {
        let path = self.data(path);
        self.call(OPEN, &[path, Number(WRITE_ONLY)]);
        self.code.extend([0x41, 0x89, 0xc4]); // mov r12d, eax
    }

    fn sleep(&mut self, seconds: u64) {
        let time = [seconds.to_le_bytes(), [0; 8]].concat();
        let time = self.data(&time);
        self.call(NANOSLEEP, &[time, Number(0)]);
    }

    /// Goes on at this place of the code.
    fn jump(&mut self, to: usize) {
        self.code.push(0xe9); // jmp
        let distance = distance(self.code.len() + 4, to);
        self.code.extend(distance);
    }

    /// Does `body` again and again.
    fn repeat(&mut self, body: impl FnOnce(&mut Self)) {
        let begin = self.code.len();
        body(self);
        self.jump(begin);
    }

    /// Passes `body` over if the condition of this jump holds.
    fn unless(&mut self, jump: [u8; 2], body: impl FnOnce(&mut Self)) {
        self.code.extend(jump);
        let at = self.code.len();
        self.code.extend([0; 4]);
        body(self);
        let distance = distance(at + 4, self.code.len());
        self.code[at..at + 4].copy_from_slice(&distance);
    }

    /// Makes a process that does `body`, which must not end.
    fn process(&mut self, body: impl FnOnce(&mut Self)) {
        self.call(FORK, &[]);
        self.code.extend([0x85, 0xc0]); // test eax, eax
        self.unless(JUMP_IF_NOT_ZERO, body);
    }

    /// Sets how soon the kernel ends this process where memory is short.
    fn score(&mut self, score: &[u8]) {
        self.open(MEMORY_SCORE);
        let length = i32::try_from(score.len()).expect("it is short");
        let score = self.data(score);
        self.call(WRITE, &[Opened, score, Number(length)]);
    }

    fn take_memory(&mut self) {
        let arguments = [0, TAKEN_BYTES, PROT_READ_WRITE, MAP_POPULATED, -1, 0];
        self.call(MMAP, &arguments.map(Number));
    }

    /// Becomes PID 1 of the image.
    fn start_init(&mut self) {
        let path = self.address(INIT);
        let words = [u64::from(path).to_le_bytes(), [0; 8]].concat();
        let words = self.data(&words);
        let variables = self.data(&[0; 8]);
        self.call(EXECVE, &[Data(path), words, variables]);
    }

    /// The file, in the format ELF.
    fn finish(self) -> Vec<u8> {
        assert!(CODE_AT + self.code.len() <= DATA_AT, "{}", self.code.len());
        let bytes = (DATA_AT + self.data.len()) as u64;
        let mut out = Vec::new();
        out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        out.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
        out.extend((u64::from(BASE) + CODE_AT as u64).to_le_bytes()); // entry
        out.extend(64_u64.to_le_bytes()); // where the program header is
        out.extend([0; 12]); // no section headers, no flags
        out.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        out.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, readable and executable
        for field in [0, u64::from(BASE), u64::from(BASE), bytes, bytes, 4096] {
            out.extend(field.to_le_bytes());
        }
        assert_eq!(out.len(), CODE_AT);
        out.extend(self.code);
        out.resize(DATA_AT, 0);
        out.extend(self.data);
        out
    }
}

/// How far a jump goes that ends at `from`.
fn distance(from: usize, to: usize) -> [u8; 4] {
    let [from, to] = [from, to].map(|at| i32::try_from(at).expect("it is short"));
    (to - from).to_le_bytes()
}

/// Starts the watchdog, and waits for ever.
pub(crate) fn hanging_program() -> Vec<u8> {
    let mut out = StaticProgram::default();
    let devices = out.data(b"devtmpfs\0");
    let folder = out.data(b"/dev\0");
    out.call(MOUNT, &[devices, folder, devices, Number(0), Number(0)]);
    out.open(b"/dev/watchdog0\0");
    out.repeat(|out| out.call(PAUSE, &[]));
    out.finish()
}

/// Writes these bytes into PID 1 of the image, each at all of its places, and becomes that program.
pub(crate) fn changing_program(changes: &[(&[u8], &[usize])]) -> Vec<u8> {
    let mut out = StaticProgram::default();
    out.open(INIT);
    for (bytes, places) in changes {
        let length = i32::try_from(bytes.len()).expect("it is short");
        let bytes = out.data(bytes);
        for place in *places {
            let place = i32::try_from(*place).expect("the program is shorter");
            out.call(PWRITE, &[Opened, bytes, Number(length), Number(place)]);
        }
    }
    // The kernel starts no program that is open for writing.
    out.call(CLOSE, &[Opened]);
    out.start_init();
    out.finish()
}

/// Becomes PID 1 of the image, beside processes that fill the memory once the node serves.
pub(crate) fn filling_program() -> Vec<u8> {
    let mut out = StaticProgram::default();
    // Takes most of the memory. The kernel never ends it.
    out.process(|out| {
        out.sleep(FILLS_AFTER_S);
        out.score(b"-1000");
        out.code.extend([0x48, 0x81, 0xec, 0x80, 0, 0, 0]); // sub rsp, 128
        let begin = out.code.len();
        out.call(SYSINFO, &[Stack]);
        out.code.extend([0x48, 0x81, 0x7c, 0x24, 0x28]); // cmp the free memory
        out.code.extend(LEFT_BYTES.to_le_bytes());
        out.unless(JUMP_IF_BELOW, |out| {
            out.take_memory();
            out.jump(begin);
        });
        out.repeat(|out| out.call(PAUSE, &[]));
    });
    // Takes the rest, again and again. The kernel ends the node, and then, as the last one, the process that takes it.
    out.process(|out| {
        out.sleep(FILLS_REST_AFTER_S);
        out.score(b"-1000");
        out.repeat(|out| {
            out.process(|out| {
                out.score(b"-999");
                out.repeat(StaticProgram::take_memory);
            });
            out.call(WAIT4, &[Number(-1), Number(0), Number(0), Number(0)]);
            out.sleep(FILLS_AGAIN_AFTER_S);
        });
    });
    out.start_init();
    out.finish()
}

/// Becomes PID 1 of the image, beside a process that ends all others again and again, after the gate.
pub(crate) fn killing_program() -> Vec<u8> {
    let mut out = StaticProgram::default();
    out.process(|out| {
        out.repeat(|out| {
            out.sleep(ENDS_NODE_EVERY_S);
            // Not PID 1, and not itself (kill(2)).
            out.call(KILL, &[Number(-1), Number(SIGKILL)]);
        });
    });
    out.start_init();
    out.finish()
}
