package zcnet

import "testing"

// Every transition from every state, in the order of the comment at interest.
func TestInterest(t *testing.T) {
	send, await, read := transition{event: evSend}, transition{event: evAwait}, transition{event: evRead}
	sendAwaited := transition{event: evSend, awaited: true}
	fire, fireReadable := transition{event: evFire}, transition{event: evFire, readable: true}
	tick, tickSent := transition{event: evTick}, transition{event: evTick, sent: true}
	detach, attach := transition{event: evDetach}, transition{event: evAttach}
	reapIdle, reapEnded := transition{event: evReap}, transition{event: evReap, ended: true}
	reapInFlight := transition{event: evReap, inFlight: true}
	reapSending := transition{event: evReap, inFlight: true, sent: true}
	reapAwaited := transition{event: evReap, inFlight: true, sent: true, awaited: true}
	reapAwaitedIdle := transition{event: evReap, awaited: true}
	reapHooked := transition{event: evReap, hooked: true}
	reapHookedSending := transition{event: evReap, hooked: true, sent: true}
	const armedForData, edgeForData = modeArmed | wantsData, modeEdge | wantsData

	for _, tt := range []struct {
		from interest
		t    transition
		to   interest
		act  action
	}{
		{modeIdle, send, modeDeferred, 0},
		{modeIdle, sendAwaited, modeArmed, actArm},
		{modeDeferred, send, modeDeferred, 0},
		{modeDeferred, sendAwaited, modeDeferred, 0}, // who waits has called await
		{modeArmed, sendAwaited, modeArmed, 0},
		{modeEdge, sendAwaited, modeEdge, 0},
		{modeDetached, sendAwaited, modeDetached, 0},

		{modeIdle, await, modeIdle, 0},
		{modeDeferred, await, modeDeferred, actReap},
		{modeArmed, await, modeArmed, 0}, // the event will come
		{modeEdge, await, modeEdge, 0},
		{modeDetached, await, modeDetached, 0},

		{modeIdle, read, armedForData, actArm},
		{modeDeferred, read, armedForData, actArm},
		{modeArmed, read, armedForData, actArm},
		{armedForData, read, armedForData, 0},
		{modeEdge, read, edgeForData, 0},
		{modeDetached, read, modeDetached, 0},

		{modeIdle, fireReadable, modeIdle, 0},
		{modeDeferred, fireReadable, modeDeferred, 0},
		{modeArmed, fire, modeArmed, actReap},
		{modeArmed, fireReadable, modeArmed, actReap},
		{armedForData, fire, armedForData, actReap}, // a completion
		{armedForData, fireReadable, modeArmed, actReap | actWake},
		{modeEdge, fire, modeEdge, actReap},
		{edgeForData, fireReadable, modeEdge, actReap | actWake},
		{modeDetached, fireReadable, modeDetached, 0},

		{modeIdle, tick, modeIdle, 0},
		{modeDeferred, tick, modeDeferred, actReap},
		{modeDeferred, tickSent, modeDeferred, 0}, // the writer reads the queue
		{modeDeferred, transition{event: evTick, sent: true, awaited: true}, modeDeferred, actReap},
		{modeArmed, tick, modeArmed, 0},
		{modeEdge, tick, modeEdge, 0},
		{modeDetached, tick, modeDetached, 0},

		{modeDeferred, reapIdle, modeIdle, 0},
		{modeDeferred, reapAwaitedIdle, modeIdle, 0},
		{modeDeferred, reapInFlight, modeArmed, actArm},
		{modeDeferred, reapSending, modeDeferred, 0},
		{modeDeferred, reapAwaited, modeArmed, actArm},
		{modeDeferred, reapHooked, modeArmed, actArm},
		{modeDeferred, reapHookedSending, modeDeferred, 0},
		{modeDeferred, reapEnded, modeEdge, actArm},
		{modeArmed, reapIdle, modeIdle, 0},
		{modeArmed, reapSending, modeDeferred, 0},
		{modeArmed, reapInFlight, modeArmed, actArm}, // for the next event
		{armedForData, reapIdle, armedForData, actArm},
		{armedForData, reapSending, armedForData, actArm},
		{armedForData, reapEnded, edgeForData, actArm},
		{modeEdge, reapIdle, modeEdge, 0},
		{modeEdge, reapEnded, modeEdge, 0},
		{edgeForData, reapSending, edgeForData, 0},
		{modeIdle, reapInFlight, modeArmed, actArm}, // after attach
		{modeDetached, reapAwaited, modeDetached, 0},

		{modeIdle, detach, modeDetached, actWake | actRemove},
		{armedForData, detach, modeDetached, actWake | actRemove},
		{modeEdge, detach, modeDetached, actWake | actRemove},
		{modeDetached, attach, modeIdle, 0},
	} {
		if to, act := tt.from.next(tt.t); to != tt.to || act != tt.act {
			t.Errorf("%#x after %+v is %#x with actions %#x, want %#x with %#x", tt.from, tt.t, to, act, tt.to, tt.act)
		}
	}
}

// A completion that is expected is read by someone: in no state that a
// transition leads to while memory is in flight is nobody responsible.
func TestInterestNeverForgetsACompletion(t *testing.T) {
	for from := range modeDetached * 2 * wantsData {
		if m := from.mode(); m > modeDetached || from&wantsData != 0 && m != modeArmed && m != modeEdge {
			continue // there is no such state
		}
		for bits := range 1 << 5 {
			for ev := evSend; ev <= evReap; ev++ {
				tr := transition{event: ev, inFlight: true, awaited: bits&1 != 0, sent: bits&2 != 0, hooked: bits&4 != 0, ended: bits&8 != 0, readable: bits&16 != 0}
				to, act := from.next(tr)
				switch {
				case from.mode() == modeIdle && ev != evSend && ev != evRead && ev != evReap:
					// nothing was in flight, or a send comes next
				case to.mode() == modeIdle:
					t.Fatalf("%#x after %+v is idle with memory in flight", from, tr)
				case to.mode() == modeDeferred && tr.awaited && ev == evReap:
					t.Fatalf("%#x after %+v is deferred though a goroutine waits", from, tr)
				case to&wantsData != 0 && to.mode() != modeArmed && to.mode() != modeEdge && from.mode() != to.mode():
					t.Fatalf("%#x after %+v is %#x: not armed for data that is waited for (actions %#x)", from, tr, to, act)
				}
			}
		}
	}
}
