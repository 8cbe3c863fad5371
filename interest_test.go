package zcnet

import "testing"

// Every transition from every state, in the order of the comment at interest.
func TestInterest(t *testing.T) {
	send, await, read := transition{event: evSend}, transition{event: evAwait}, transition{event: evRead}
	sendAwaited := transition{event: evSend, awaited: true}
	fire, fireReadable := transition{event: evFire}, transition{event: evFire, readable: true}
	tick, tickSent := transition{event: evTick}, transition{event: evTick, sent: true}
	detach, attach := transition{event: evDetach}, transition{event: evAttach}
	reapIdle := transition{event: evReap}
	reapInFlight := transition{event: evReap, inFlight: true}
	reapSending := transition{event: evReap, inFlight: true, sent: true}
	reapAwaited := transition{event: evReap, inFlight: true, sent: true, awaited: true}
	reapAwaitedIdle := transition{event: evReap, awaited: true}
	reapHooked := transition{event: evReap, hooked: true}
	reapHookedSending := transition{event: evReap, hooked: true, sent: true}
	tickSentAwaited := transition{event: evTick, sent: true, awaited: true}
	const (
		idleInSet = modeIdle | inSet
		armed     = modeArmed | inSet
		forBoth   = armed | forData             // its reader has been woken
		waiting   = armed | forData | wantsData // a goroutine waits for data
	)

	for _, tt := range []struct {
		from interest
		t    transition
		to   interest
		act  action
	}{
		{modeIdle, send, modeDeferred, 0},
		{modeIdle, sendAwaited, armed, actArm},
		{idleInSet, send, armed, 0},
		{idleInSet, sendAwaited, armed, 0},
		{modeDeferred, sendAwaited, modeDeferred, 0}, // who waits has called await
		{armed, send, armed, 0},
		{waiting, send, waiting, 0},
		{modeDetached, sendAwaited, modeDetached, 0},

		{modeIdle, await, modeIdle, 0},
		{modeDeferred, await, modeDeferred, actReap},
		{armed, await, armed, 0}, // the event will come
		{modeDetached, await, modeDetached, 0},

		{modeIdle, read, waiting, actArm},
		{idleInSet, read, waiting, actArm},
		{modeDeferred, read, waiting, actArm},
		{armed, read, waiting, actArm},
		{waiting, read, waiting, 0},
		{forBoth, read, waiting, 0},
		{modeDetached, read, modeDetached, 0},

		{modeIdle, fireReadable, modeIdle, 0},
		{idleInSet, fire, idleInSet, 0},
		{modeDeferred, fireReadable, modeDeferred, 0},
		{armed, fire, armed, actReap},
		{armed, fireReadable, armed, actReap},
		{waiting, fire, waiting, actReap}, // a completion
		{waiting, fireReadable, forBoth, actReap | actWake},
		{modeDetached, fireReadable, modeDetached, 0},

		{modeIdle, tick, modeIdle, 0},
		{modeDeferred, tick, modeDeferred, actReap},
		{modeDeferred, tickSent, modeDeferred, 0}, // the writer reads the queue
		{modeDeferred, tickSentAwaited, modeDeferred, actReap},
		{armed, tick, armed, 0},
		{modeDetached, tick, modeDetached, 0},

		{modeDeferred, reapIdle, modeIdle, 0},
		{modeDeferred, reapAwaitedIdle, modeIdle, 0},
		{modeDeferred, reapInFlight, armed, actArm},
		{modeDeferred, reapSending, modeDeferred, 0},
		{modeDeferred, reapAwaited, armed, actArm},
		{modeDeferred, reapHooked, armed, actArm},
		{modeDeferred, reapHookedSending, modeDeferred, 0},
		{armed, reapIdle, idleInSet, 0},
		{armed, reapInFlight, armed, 0},
		{armed, reapAwaited, armed, 0},
		{armed, reapHooked, armed, 0},
		{armed, reapSending, modeDeferred, actDisarm},
		{forBoth, reapIdle, idleInSet, actArm}, // for data no more
		{forBoth, reapInFlight, armed, actArm},
		{forBoth, reapSending, modeDeferred, actDisarm},
		{waiting, reapIdle, waiting, 0},
		{waiting, reapSending, waiting, 0},
		{modeIdle, reapInFlight, armed, actArm}, // after attach
		{idleInSet, reapIdle, idleInSet, 0},
		{modeDetached, reapAwaited, modeDetached, 0},

		{modeIdle, detach, modeDetached, actWake | actRemove},
		{waiting, detach, modeDetached, actWake | actRemove},
		{modeDetached, attach, modeIdle, 0},
		{modeDetached, detach, modeDetached, actWake | actRemove},
	} {
		if to, act := tt.from.next(tt.t); to != tt.to || act != tt.act {
			t.Errorf("%#x after %+v is %#x with actions %#x, want %#x with %#x", tt.from, tt.t, to, act, tt.to, tt.act)
		}
	}
}

// A completion that is expected is read by someone, whatever happens, and what
// the word says of the epoll set fits the mode.
func TestInterestNeverForgetsACompletion(t *testing.T) {
	reached := map[interest]bool{modeIdle: true}
	for queue := []interest{modeIdle}; len(queue) > 0; queue = queue[1:] {
		from := queue[0]
		for bits := range 1 << 5 {
			for ev := evSend; ev <= evAttach; ev++ {
				if ev == evAttach && from.mode() != modeDetached {
					continue
				}
				tr := transition{event: ev, awaited: bits&1 != 0, sent: bits&2 != 0, inFlight: bits&4 != 0, hooked: bits&8 != 0, readable: bits&16 != 0}
				to, act := from.next(tr)
				switch mode := to.mode(); {
				case mode == modeIdle && (ev == evSend || ev == evReap && tr.inFlight && from.mode() != modeDetached):
					t.Fatalf("%#x after %+v is idle with memory in flight", from, tr)
				case mode == modeDeferred && tr.awaited && (ev == evReap || ev == evSend && from.mode() == modeIdle):
					t.Fatalf("%#x after %+v is deferred though a goroutine waits", from, tr)
				case mode == modeArmed && to&inSet == 0 || mode == modeDeferred && to&inSet != 0:
					t.Fatalf("%#x after %+v is %#x: the mode does not fit the epoll set", from, tr, to)
				case to&wantsData != 0 && (mode != modeArmed || to&forData == 0):
					t.Fatalf("%#x after %+v is %#x: not armed for data that is waited for", from, tr, to)
				case mode != modeDetached && from.mode() != modeDetached && (act&(actArm|actDisarm) != 0) != (from&(inSet|forData) != to&(inSet|forData)):
					t.Fatalf("%#x after %+v is %#x with actions %#x: the epoll set does not follow", from, tr, to, act)
				}
				if !reached[to] {
					reached[to] = true
					queue = append(queue, to)
				}
			}
		}
	}
	t.Logf("%d states", len(reached))
}
