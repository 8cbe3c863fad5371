package zcnet

// An interest is the state of one descriptor's completions: who reads its error
// queue next, and what the poller watches it for. It is one word, guarded by
// watch.mu, and changes by next alone.
//
// The kernel merges a completion into the last unread one where it can, but
// reports an error on the socket for each, and so wakes every epoll that is
// armed for it (__msg_zerocopy_callback in net/core/skbuff.c). Under bulk
// sending that would be thousands of wake-ups per gigabyte. So while a writer
// is at work and no goroutine waits for a completion, the poller is not armed:
// the writer, which is in the kernel anyway, reads the queue every reapEvery
// calls, and the poller's tick finds out when it has stopped.
//
// The mode is one of
//
//	idle      No completion is expected, and the poller is not armed.
//	deferred  The writer reads the queue. The poller is not armed; its tick
//	          looks after the connection, which is in poller.deferred.
//	armed     The poller is armed for one event, or is handling it.
//	edge      The poller is armed for each new event, for good: the socket
//	          shows a hang-up or an error that reading the queue does not
//	          clear, and that would be reported again and again.
//	detached  The descriptor is closed, or about to be.
//
// and the transitions are, with the goroutine that makes each:
//
//	send    a writer, before a flagged call with nothing else in flight, and
//	        after it has reserved the call's ID in the ledger
//	await   a goroutine that begins to wait for a ticket, a flush or memory, or
//	        asks whether a ticket is done, after it has registered as waiting
//	read    a goroutine that waits for data because the runtime's poller
//	        refuses to (see read.go), before it tries to read
//	fire    the poller, with an event
//	tick    the poller, with its tick
//	reap    whoever has just read the error queue until it was empty
//	detach  Close, before it closes the descriptor
//	attach  Close, with the second descriptor that outlives the first
//
// Whatever an input of next depends on is registered before the lock is taken
// under which next is called, and looked at under the lock. So of a waiter and
// the poller, or of a writer and the poller, the later one sees the earlier.
type interest uint8

// The parts of an interest.
const (
	modeIdle interest = iota
	modeDeferred
	modeArmed
	modeEdge
	modeDetached

	modeMask  interest = 1<<3 - 1
	wantsData interest = 1 << 3 // a goroutine waits for data
)

func (i interest) mode() interest { return i & modeMask }

func (i interest) with(mode interest) interest { return i&^modeMask | mode }

// A transition is an event of the table above, with what else it depends on.
type transition struct {
	event event

	awaited  bool // send, tick, reap: a goroutine waits for a completion or for memory
	sent     bool // tick, reap: a flagged call was made since the last tick or reap
	inFlight bool // reap: memory is in flight, or a flagged call is under way
	hooked   bool // reap: every message of the queue is wanted (Config.ErrorQueue)
	ended    bool // reap: the empty queue still shows a hang-up or an error
	readable bool // fire: there is something to read, or never will be
}

// An event is the name of a transition.
type event uint8

const (
	evSend event = iota
	evAwait
	evRead
	evFire
	evTick
	evReap
	evDetach
	evAttach
)

// An action is what the caller of next has to do.
type action uint8

const (
	actArm    action = 1 << iota // arm the poller for the new interest
	actReap                      // read the error queue, and call next with evReap
	actWake                      // wake the goroutines that wait for data
	actRemove                    // take the descriptor out of the poller
)

// next returns the interest after a transition, and what is to be done for it.
func (i interest) next(t transition) (interest, action) {
	mode := i.mode()
	switch t.event {
	case evAttach:
		return modeIdle, 0
	case evDetach:
		return modeDetached, actWake | actRemove
	}
	if mode == modeDetached {
		return i, 0
	}
	switch t.event {
	case evSend:
		if mode == modeIdle && t.awaited {
			return i.with(modeArmed), actArm
		}
		if mode == modeIdle {
			return i.with(modeDeferred), 0
		}
	case evAwait:
		if mode == modeDeferred {
			return i, actReap
		}
	case evRead:
		return i.afterRead()
	case evFire:
		return i.afterFire(t)
	case evTick:
		if mode == modeDeferred && (!t.sent || t.awaited) {
			return i, actReap
		}
	case evReap:
		return i.afterReap(t)
	}
	return i, 0
}

// afterRead arms the poller for data too. To arm it reports what is there
// already.
func (i interest) afterRead() (interest, action) {
	switch {
	case i.mode() == modeEdge:
		return i | wantsData, 0 // it is armed for data always
	case i.mode() == modeArmed && i&wantsData != 0:
		return i, 0
	}
	return i.with(modeArmed) | wantsData, actArm
}

func (i interest) afterFire(t transition) (interest, action) {
	if i.mode() != modeArmed && i.mode() != modeEdge {
		return i, 0 // it was armed before it was deferred or idle
	}
	if t.readable && i&wantsData != 0 {
		return i &^ wantsData, actReap | actWake
	}
	return i, actReap
}

// afterReap decides who reads the queue next.
func (i interest) afterReap(t transition) (interest, action) {
	expected := t.inFlight || t.hooked
	switch {
	case i.mode() == modeEdge:
		return i, 0
	case t.ended:
		return i.with(modeEdge), actArm
	case i&wantsData != 0 || expected && (t.awaited || !t.sent):
		return i.with(modeArmed), actArm
	case expected:
		return i.with(modeDeferred), 0
	}
	return i.with(modeIdle), 0
}
