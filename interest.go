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
//	idle      No completion is expected.
//	deferred  The writer reads the queue. The poller is not armed; its tick
//	          looks after the connection, which is in poller.deferred.
//	armed     The poller has the next event of the descriptor, or is handling
//	          it. It is armed edge-triggered: for each new event, and for good,
//	          because a hang-up or an error that reading the queue does not clear
//	          would otherwise be reported again and again.
//	detached  The descriptor is closed, or about to be.
//
// A descriptor stays in the epoll set when its connection becomes idle, and is
// taken out of it when the connection is deferred.
//
// The transitions are, with the goroutine that makes each:
//
//	send    a writer, before a flagged call with nothing else in flight, and
//	        after it has reserved the call's ID in the ledger
//	await   a goroutine that begins to wait for a ticket, a flush or memory, or
//	        asks whether a ticket is done, after it has registered as waiting
//	read    a goroutine that waits for data because the runtime's poller
//	        refuses to (see read.go), before it tries to read
//	fire    the poller, with an event
//	tick    the poller, with its tick
//	reap    a goroutine that has just read the error queue until it was empty
//	detach  Close, before it closes the descriptor
//	attach  Close, with the descriptor that outlives this
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
	modeDetached

	modeMask  interest = 1<<2 - 1
	wantsData interest = 1 << 2 // a goroutine waits for data
	inSet     interest = 1 << 3 // the descriptor is in the epoll set
	forData   interest = 1 << 4 // and its events tell of data too
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
	actArm    action = 1 << iota // put the descriptor into the epoll set, or change what its events tell of
	actDisarm                    // take it out
	actReap                      // read the error queue, and call next with evReap
	actWake                      // wake the goroutines that wait for data
	actRemove                    // have the poller forget the socket
)

// next returns the interest after a transition, and what is to be done for it.
func (i interest) next(t transition) (interest, action) {
	mode := i.mode()
	switch {
	case t.event == evAttach:
		return modeIdle, 0
	case t.event == evDetach:
		return modeDetached, actWake | actRemove
	case mode == modeDetached:
		return i, 0
	}
	switch t.event {
	case evSend:
		return i.afterSend(t)
	case evAwait:
		if mode == modeDeferred {
			return i, actReap
		}
	case evRead:
		return (i | wantsData).arm()
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

// arm enters modeArmed. To change what the events tell of reports also what is
// there already.
func (i interest) arm() (interest, action) {
	before := i
	i = i.with(modeArmed) | inSet
	if i&wantsData != 0 {
		i |= forData
	} else {
		i &^= forData
	}
	if i&(inSet|forData) != before&(inSet|forData) {
		return i, actArm
	}
	return i, 0
}

func (i interest) afterSend(t transition) (interest, action) {
	switch {
	case i.mode() != modeIdle:
		return i, 0
	case t.awaited || i&inSet != 0:
		return i.arm()
	}
	return i.with(modeDeferred), 0
}

func (i interest) afterFire(t transition) (interest, action) {
	if i.mode() != modeArmed {
		return i, 0 // nothing is expected
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
	case i&wantsData != 0 || expected && (t.awaited || !t.sent):
		return i.arm()
	case expected && i&inSet != 0:
		return i.with(modeDeferred) &^ (inSet | forData), actDisarm
	case expected:
		return i.with(modeDeferred), 0
	case i&forData != 0:
		i, act := i.arm() // for what may come without data
		return i.with(modeIdle), act
	}
	return i.with(modeIdle), 0
}
