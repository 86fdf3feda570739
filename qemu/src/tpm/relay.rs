//! Between QEMU and swtpm.
//!
//! QEMU has two connections to swtpm: one that controls the chip, over which it first sends the other
//! one's descriptor, and one for the commands of the guest. Both pass through here. The guest finds one bank of
//! PCRs, and its commands are kept for a machine that is going to be saved. A machine that was restored finds a chip that
//! was switched on and asked the same; until it has taken over its devices, QEMU's orders to switch the
//! chip off and on do not reach it, for they would undo that.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::command::{self, TpmExchange, code, number};

/// Orders to swtpm, the first four bytes of a message (`swtpm_ioctls.3`).
const INIT: u32 = 0x02;
const GET_STATE: u32 = 0x0c;
const SET_STATE: u32 = 0x0d;
const STOP: u32 = 0x0e;
const SET_DATA_FD: u32 = 0x10;
const SET_BUFFER_SIZE: u32 = 0x11;

/// That went well.
const DONE: [u8; 4] = [0; 4];
/// The chip's state is no bytes long, so that QEMU saves none.
const NO_STATE: [u8; 16] = [0; 16];
/// The size of the buffer that QEMU's `tpm-crb` has; 0 asks for the size in use.
const BUFFER_BYTES: u32 = 0xf80;

/// Bytes of an order or an answer; blobs of state, which are longer, do not pass.
const ORDER_BYTES_MAX: usize = 4096;

/// A man in the middle between a machine and its TPM: hears, changes and makes up what passes.
pub trait Interposer: std::fmt::Debug + Send + Sync {
    /// What the machine gets for a command; `chip` has the TPM execute any. Both have headers.
    ///
    /// # Errors
    /// Those of `chip`: the connection ends.
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>>;
}

/// Which commands are meant.
pub(super) type Which = fn(&[u8]) -> bool;

/// The two threads that do it. They end with QEMU.
#[derive(Debug)]
pub(super) struct TpmRelay(Arc<TpmRelayShared>);

#[derive(Debug, Default)]
struct TpmRelayShared {
    /// Since the chip was switched on.
    exchanges: Mutex<Vec<TpmExchange>>,
    taken_over: AtomicBool,
    interposer: Option<Arc<dyn Interposer>>,
    hold: Mutex<HeldTpmResponse>,
    let_go: Condvar,
}

/// A response that the guest waits for.
#[derive(Debug, Default)]
struct HeldTpmResponse {
    /// To the next one of these commands.
    wanted: Option<Which>,
    is_held: bool,
}

impl TpmRelay {
    /// Starts the relay threads; with `before`, replays those commands to swtpm first.
    pub(super) fn start(
        qemu: UnixStream,
        chip: UnixStream,
        before: Option<Vec<TpmExchange>>,
        interposer: Option<Arc<dyn Interposer>>,
    ) -> io::Result<Self> {
        let shared = Arc::new(TpmRelayShared {
            interposer,
            ..TpmRelayShared::default()
        });
        let mut control = ControlRelay {
            qemu,
            chip,
            data: None,
            shared: shared.clone(),
        };
        match before {
            Some(before) => control.repeat(before)?,
            None => shared.taken_over.store(true, Ordering::Relaxed),
        }
        let run = move || {
            if let Err(error) = control.run() {
                tracing::debug!(%error, "the connection between QEMU and swtpm");
            }
        };
        thread::Builder::new().name("tpm".to_owned()).spawn(run)?;
        Ok(Self(shared))
    }

    /// What the chip was asked so far.
    pub(super) fn exchanges(&self) -> Vec<TpmExchange> {
        self.0.exchanges().clone()
    }

    pub(super) fn taken_over(&self) {
        self.0.taken_over.store(true, Ordering::Relaxed);
    }

    /// Keeps back the response to the next such command.
    pub(super) fn hold(&self, wanted: Which) {
        self.0.held().wanted = Some(wanted);
    }

    /// The guest waits for such a response.
    pub(super) fn is_held(&self) -> bool {
        self.0.held().is_held
    }

    /// Lets it go.
    pub(super) fn release(&self) {
        *self.0.held() = HeldTpmResponse::default();
        self.0.let_go.notify_all();
    }
}

impl Drop for TpmRelay {
    fn drop(&mut self) {
        // A thread that keeps something back would never see that QEMU ended.
        self.release();
    }
}

impl TpmRelayShared {
    fn exchanges(&self) -> MutexGuard<'_, Vec<TpmExchange>> {
        self.exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HeldTpmResponse> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as the response to this command is to be kept back.
    fn wait_let_go(&self, command: &[u8]) {
        let mut hold = self.held();
        if !hold.wanted.is_some_and(|wanted| wanted(command)) {
            return;
        }
        hold.is_held = true;
        let let_go = self.let_go.wait_while(hold, |hold| hold.is_held);
        drop(let_go.unwrap_or_else(PoisonError::into_inner));
    }
}

struct ControlRelay {
    qemu: UnixStream,
    chip: UnixStream,
    /// The chip's other connection, until QEMU brings its own.
    data: Option<UnixStream>,
    shared: Arc<TpmRelayShared>,
}

impl ControlRelay {
    fn run(mut self) -> io::Result<()> {
        loop {
            let (order, fd) = receive(&self.qemu)?;
            if order.len() < 4 {
                return Ok(());
            }
            let answer = self.answer(&order, fd)?;
            self.qemu.write_all(&answer)?;
        }
    }

    fn answer(&mut self, order: &[u8], fd: Option<OwnedFd>) -> io::Result<Vec<u8>> {
        let waits = !self.shared.taken_over.load(Ordering::Relaxed);
        match number(order) {
            SET_DATA_FD => {
                let qemu = fd.ok_or_else(|| io::Error::other("no descriptor came"))?;
                self.connect(qemu.into())
            }
            GET_STATE => Ok(NO_STATE.to_vec()),
            INIT | STOP | SET_STATE if waits => Ok(DONE.to_vec()),
            // A chip that runs does not change the size, and says it.
            SET_BUFFER_SIZE if waits => self.order(SET_BUFFER_SIZE, Some(0)),
            INIT => {
                self.shared.exchanges().clear();
                self.forward(order, None)
            }
            _ => self.forward(order, None),
        }
    }

    /// Passes commands from QEMU to the chip from now on.
    fn connect(&mut self, qemu: UnixStream) -> io::Result<Vec<u8>> {
        let (chip, answer) = match self.data.take() {
            Some(data) => (data, DONE.to_vec()),
            None => self.open()?,
        };
        let shared = self.shared.clone();
        let run = move || {
            if let Err(error) = pass(qemu, chip, &shared) {
                tracing::debug!(%error, "the connection between a guest and its TPM");
            }
        };
        thread::Builder::new().name("tpm".to_owned()).spawn(run)?;
        Ok(answer)
    }

    /// Opens the chip's connection for commands.
    fn open(&mut self) -> io::Result<(UnixStream, Vec<u8>)> {
        let (ours, theirs) = UnixStream::pair()?;
        let order = SET_DATA_FD.to_be_bytes();
        let answer = self.forward(&order, Some(theirs.into()))?;
        Ok((ours, answer))
    }

    /// Switches the chip on and replays the commands that were recorded of another one.
    fn repeat(&mut self, before: Vec<TpmExchange>) -> io::Result<()> {
        let (mut data, answer) = self.open()?;
        went_well("the descriptor", &answer)?;
        went_well(
            "the size",
            &self.order(SET_BUFFER_SIZE, Some(BUFFER_BYTES))?,
        )?;
        went_well("the start", &self.order(INIT, Some(0))?)?;
        for one in &before {
            let answer = ask(&mut data, &one.command)?;
            let (told, then) = (code(&answer), one.code);
            if told != then {
                let what = code(&one.command);
                let why = format!("to 0x{what:x} it answers 0x{told:x} instead of 0x{then:x}");
                return Err(io::Error::other(why));
            }
        }
        *self.shared.exchanges() = before;
        self.data = Some(data);
        Ok(())
    }

    /// An order of ours.
    fn order(&mut self, order: u32, argument: Option<u32>) -> io::Result<Vec<u8>> {
        let words = [Some(order), argument];
        let bytes: Vec<u8> = words
            .iter()
            .flatten()
            .flat_map(|it| it.to_be_bytes())
            .collect();
        self.forward(&bytes, None)
    }

    fn forward(&mut self, order: &[u8], fd: Option<OwnedFd>) -> io::Result<Vec<u8>> {
        send(&self.chip, order, fd)?;
        let mut answer = vec![0; ORDER_BYTES_MAX];
        let read = self.chip.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    }
}

/// Passes commands and responses until QEMU ends, and keeps them.
fn pass(mut qemu: UnixStream, mut chip: UnixStream, shared: &TpmRelayShared) -> io::Result<()> {
    while let Some(command) = command::receive(&mut qemu)? {
        let response = match &shared.interposer {
            Some(interposer) => interposer.exchange(&command, &mut |it| ask(&mut chip, it))?,
            None => ask(&mut chip, &command)?,
        };
        let response = command::with_one_bank(&command, response);
        let code = code(&response);
        // Before the guest goes on: who sees what it does next finds this here.
        shared.exchanges().push(TpmExchange {
            command: command.clone(),
            code,
        });
        shared.wait_let_go(&command);
        qemu.write_all(&response)?;
    }
    Ok(())
}

fn ask(chip: &mut UnixStream, command: &[u8]) -> io::Result<Vec<u8>> {
    chip.write_all(command)?;
    command::receive(chip)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn went_well(what: &str, answer: &[u8]) -> io::Result<()> {
    match answer.first_chunk() {
        Some(&DONE) => Ok(()),
        _ => Err(io::Error::other(format!(
            "swtpm refuses {what}: {answer:?}"
        ))),
    }
}

/// An order with the descriptor that came with it; no bytes at the end of the stream.
fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut order = vec![0; ORDER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut order)];
    let got = recvmsg(
        socket.as_fd(),
        &mut parts,
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut some) = message {
            fd = some.next();
        }
    }
    order.truncate(got.bytes);
    Ok((order, fd))
}

fn send(socket: &UnixStream, order: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let parts = [IoSlice::new(order)];
    // Orders are short: they go whole or not at all.
    sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
