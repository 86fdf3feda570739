//! A subscription of the script.

use std::pin::Pin;
use std::task::{Context, Poll};

use alknet_runtime::{OpError, OpReply};
use futures_util::Stream;
use tokio::sync::mpsc;

use super::Happened;
use super::answer::{deferred_reply, gone};
use super::bridge_host::GuestOutgoingCall;
use crate::guest::lock;
use crate::limits::UNACKNOWLEDGED;
use crate::wire::GuestMessage;

/// The script's end of a subscription. The isolate buffers items, so one counts as taken when the isolate has asked
/// for as many later items as its buffer holds.
pub(super) struct ScriptSubscription {
    outgoing: GuestOutgoingCall,
    events: mpsc::UnboundedReceiver<Happened>,
    yielded: u32,
    acknowledged: u32,
}

impl ScriptSubscription {
    pub(super) fn new(
        outgoing: GuestOutgoingCall,
        events: mpsc::UnboundedReceiver<Happened>,
    ) -> Self {
        Self {
            outgoing,
            events,
            yielded: 0,
            acknowledged: 0,
        }
    }

    fn acknowledge(&mut self) {
        let buffered = u32::try_from(UNACKNOWLEDGED - 1).unwrap_or(u32::MAX);
        let taken = self.yielded.saturating_sub(buffered);
        let more = taken.saturating_sub(self.acknowledged);
        if more > 0 {
            self.acknowledged = taken;
            let bridge = &self.outgoing.bridge;
            let mut state = lock(&bridge.state);
            bridge.tell(&mut state, &GuestMessage::Taken(self.outgoing.id, more));
        }
    }
}

impl Stream for ScriptSubscription {
    type Item = Result<OpReply, OpError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outgoing.done {
            return Poll::Ready(None);
        }
        self.acknowledge();
        let event = match self.events.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(event) => event,
        };
        // The bridge was closed, which drops the other end.
        let Some(event) = event else {
            self.outgoing.done = true;
            return Poll::Ready(Some(Err(gone())));
        };
        Poll::Ready(match event {
            Ok(Some(value)) => {
                self.yielded += 1;
                // An error is the last item, so that the host sends no more.
                Some(match value.refusal() {
                    Some(refused) => Err(refused),
                    None => Ok(deferred_reply(Ok(value))),
                })
            }
            Ok(None) => {
                self.outgoing.done = true;
                None
            }
            Err(fault) => {
                self.outgoing.done = true;
                Some(Ok(deferred_reply(Err(fault))))
            }
        })
    }
}
