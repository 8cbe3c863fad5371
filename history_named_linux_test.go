package zcnet

import (
	"slices"
	"strings"
)

// This file holds the histories that have a name: each a situation that the fake kernel is there to bring about. They
// are where FuzzConn starts from.

// namedHistory is a history, and what must have come of it, so that it goes on showing what it is called after.
type namedHistory struct {
	name  string
	set   settings
	steps []byte
	saw   func(s Stats, h *history) bool
}

func (n namedHistory) bytes() []byte {
	set := []byte{n.set.start, n.set.buffer, n.set.threshold, n.set.inFlight, n.set.stubborn, n.set.linger}
	return append(set, n.steps...)
}

// failedBecause reports whether the connection has failed for a reason.
func (h *history) failedBecause(why string) bool {
	err := h.c.s.ledger().failure()
	return err != nil && strings.Contains(err.Error(), why)
}

// What the second byte of an instruction says.
const (
	oneCall      = 1       // a write of a page or so
	manyCalls    = 7       // of more than one call takes
	other        = 1 << 3  // of other memory
	third        = 2 << 3  // of other memory again
	all          = 7       // that there are
	truncated    = 5       // so much beside a completion that it is cut off
	lyingOnce    = 20 + 2  // one notification, and the library believes there is no limit
	noMemlock    = 40 + 5  // 10 KiB may be pinned, and the library believes it is more
	odd          = 1       // of settings.stubborn
	narrowBuffer = 2       // of settings.buffer: 20 KiB
	abort        = 6       // of settings.linger
	patient      = 7       // of settings.linger
	now          = 1       // of deadlines
	lastID       = 1       // of settings.start: the last before the wrap
	peerReset    = 0       // of doReset
	peerEnds     = 1       // of doReset
	failOther    = 0       // of doOtherFault
	dup          = 2       // of doMessage
	invention    = 3       // of doMessage
	unicorn      = 1 + 6*5 // of doMessage: a foreign message with data
)

var namedHistories = []namedHistory{
	{"nothing goes wrong", settings{}, []byte{opWrite, manyCalls, opFlush, 0, doTransmit, all, doAcknowledge, all, doPoll, 0},
		func(s Stats, h *history) bool { return s.Sends == 2 && s.ZeroCopiedBytes > smallCall }},
	{"partial sends", settings{}, []byte{doFault, byte(faultPartial), doFault, byte(faultOneByte), opWrite, oneCall},
		func(s Stats, h *history) bool { return s.Sends == 2 && s.CopiedBytes > 0 || s.Sends == 3 }},
	{"EAGAIN when the buffer is full", settings{buffer: narrowBuffer}, []byte{opWrite, manyCalls, doTransmit, all, doAcknowledge, 1, opFlush, 0},
		func(s Stats, h *history) bool { return s.Sends > 3 }},
	{"EAGAIN for want of memory", settings{}, []byte{doFault, byte(faultEAGAIN), opWrite, oneCall, doRoom, 2, doRoom, 0},
		func(s Stats, h *history) bool { return s.Sends == 1 }},
	{"EINTR everywhere", settings{}, []byte{doFault, byte(faultEINTR), opWrite, oneCall, doReceiveFault, 0, doReceiveFault, 1, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.Sends == 1 }},
	{"ENOBUFS by optmem", settings{}, []byte{doLimits, lyingOnce, opWrite, oneCall, opWrite, oneCall | other},
		func(s Stats, h *history) bool { return s.EnobufsOptmem > 0 && s.CopiedBytes > 0 }},
	{"ENOBUFS by optmem, and unread completions", settings{}, []byte{doLimits, lyingOnce, opWrite, oneCall, doTransmit, all, doAcknowledge, all, opWrite, oneCall | other},
		func(s Stats, h *history) bool { return s.EnobufsOptmem > 0 && s.CopiedBytes == 0 }},
	{"ENOBUFS by memlock", settings{}, []byte{doLimits, noMemlock, opWrite, manyCalls},
		func(s Stats, h *history) bool { return s.EnobufsMemlock > 0 && s.CopiedBytes > 0 }},
	{"optmem that is known from one ENOBUFS", settings{}, []byte{doLimits, 2, opWrite, oneCall, opWrite, oneCall | other, opWrite, oneCall},
		func(s Stats, h *history) bool { return s.EnobufsOptmem == 1 && s.Fallbacks.Optmem == 2 }},
	{"memory that cannot be pinned", settings{}, []byte{doFault, byte(faultEFAULT), opWrite, oneCall},
		func(s Stats, h *history) bool { return s.Fallbacks.Unpinnable == 1 }},
	{"flagged calls are refused", settings{}, []byte{doFault, byte(faultEOPNOTSUPP), opWrite, oneCall, opWrite, oneCall},
		func(s Stats, h *history) bool { return s.ZeroCopyRefused && s.Fallbacks.Refused == 2 }},
	{"the poller cannot be had", settings{}, []byte{doOtherFault, failOther, opWrite, oneCall},
		func(s Stats, h *history) bool { return s.Fallbacks.Refused == 1 && s.Sends == 0 && !s.ZeroCopyRefused }},
	{"the poller cannot be had, and then it can", settings{}, []byte{doOtherFault, failOther, opWrite, oneCall, opWrite, oneCall, doSleep, 255, opWrite, oneCall},
		func(s Stats, h *history) bool { return s.Fallbacks.Refused == 2 && s.Sends == 1 }},

	{"the poller cannot be armed", settings{}, []byte{opWrite, oneCall, doOtherFault, failOther, opWait, 0, doTransmit, all, doAcknowledge, all, doTick, 0},
		func(s Stats, h *history) bool { return h.k.unarmed && h.waiters[0].returned && !s.ZeroCopyRefused }},

	{"merged ranges", settings{}, []byte{opWrite, oneCall, opWrite, oneCall | other, opWrite, oneCall | third, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.Sends == 3 && s.Notifications == 1 }},
	{"calls that share a notification", settings{}, []byte{opWrite, oneCall, doFault, byte(faultJoin), opWrite, oneCall | other, doTransmit, 0, doAcknowledge, 0, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.Sends == 2 && s.Notifications == 1 }},
	{"reordered ranges", settings{}, []byte{opWrite, oneCall, opWrite, oneCall | other, doTransmit, all, doHold, 0, doAcknowledge, all, opFlush, 0, doPoll, 0, doReleaseHeld, 0, doPoll, 0},
		func(s Stats, h *history) bool { return s.Notifications == 2 && h.k.told[0].lo == 1 }},
	{"a duplicated range", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0, doTick, 0, doMessage, dup, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.RejectedNotifications == 1 && s.CompletionsDistrusted }},
	{"an invented range", settings{}, []byte{opWrite, oneCall, doMessage, invention, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.RejectedNotifications == 1 && s.CompletionsDistrusted }},
	{"a range over the wrap", settings{start: lastID}, []byte{opWrite, oneCall, opWrite, oneCall | other, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return len(h.k.told) == 1 && h.k.told[0].lo > h.k.told[0].hi }},
	{"a hole over the wrap", settings{start: lastID}, []byte{opWrite, oneCall, opWrite, oneCall | other, opWrite, oneCall | third, doTransmit, all, doHold, 1, doAcknowledge, all, opFlush, 0, doPoll, 0},
		func(s Stats, h *history) bool { return s.Notifications >= 2 }},
	{"a completion before its call has returned", settings{}, []byte{doFault, byte(faultEarly), opWrite, manyCalls},
		func(s Stats, h *history) bool { return s.Sends == 2 }},
	{"a completion that another reads while its call is in the kernel", settings{}, []byte{doFault, byte(faultParkAfter), opWrite, oneCall, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0, doUnpark, 0},
		func(s Stats, h *history) bool { return s.Sends == 1 && s.Drains == 2 && s.Notifications == 1 }},

	{"foreign messages between completions", settings{}, []byte{opWrite, oneCall, doMessage, 0, doTransmit, all, doAcknowledge, all, doMessage, unicorn, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.ForeignMessages == 2 }},
	{"a timestamp beside a completion", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doMessage, 4, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.ForeignMessages == 0 && s.Notifications == 1 }},
	{"a truncated completion", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doMessage, truncated, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return s.UnprovenBytes == 0 && s.CompletionsDistrusted }},

	{"reset by the peer", settings{}, []byte{opWrite, oneCall, doTransmit, all, opWait, 0, doReset, peerReset, doPoll, 0, doPoll, 0},
		func(s Stats, h *history) bool { return s.ConnectionFailed && s.UnprovenBytes == 0 }},
	{"reset with everything acknowledged", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doReset, peerReset, doTick, 0, doTick, 0},
		func(s Stats, h *history) bool { return !s.ConnectionFailed }},
	{"reset under a blocked write", settings{buffer: narrowBuffer}, []byte{opWrite, manyCalls, opWrite, oneCall | other, doReset, peerReset},
		func(s Stats, h *history) bool { return h.ops[0].err != nil && h.ops[1].err != nil }},

	{"closed with nothing in flight", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doTick, 0, doTick, 0, opClose, 0},
		func(s Stats, h *history) bool { return !s.ConnectionFailed && h.c.s.lingering.Load() == nil }},
	{"closed with memory in flight", settings{}, []byte{opWritePool, oneCall, opClose, 0, doTransmit, all, doRetransmit, 0, doAcknowledge, all, doPoll, 0},
		func(s Stats, h *history) bool { return !s.ConnectionFailed && h.c.s.lingering.Load() != nil }},
	{"closed, and the peer never reads", settings{}, []byte{opWrite, oneCall, opClose, 0, doSleep, 255, doSleep, 255, doSleep, 255, doPoll, 0},
		func(s Stats, h *history) bool {
			return h.failedBecause("acknowledged nothing for 5") && s.UnprovenBytes == 0
		}},
	{"closed, and the peer takes a little at a time", settings{}, []byte{opWrite, oneCall, opWrite, oneCall, opWrite, oneCall, doTransmit, all, opClose, 0,
		doSleep, 150, doAcknowledge, 0, doPoll, 0, doSleep, 150, doAcknowledge, 0, doPoll, 0, doSleep, 150},
		func(s Stats, h *history) bool { return !s.ConnectionFailed }},
	{"closed, and the peer takes too little at a time", settings{}, []byte{opWrite, oneCall, opWrite, oneCall, opWrite, oneCall, doTransmit, all, opClose, 0,
		doSleep, 200, doAcknowledge, 0, doPoll, 0, doSleep, 200, doAcknowledge, 0, doPoll, 0, doSleep, 150},
		func(s Stats, h *history) bool { return h.failedBecause("reset 10s after Close") }},
	{"closed, and the peer takes nothing of memory that is waited for", settings{}, []byte{opWritePool, oneCall, opWritePool, oneCall, opWritePool, oneCall, opClose, 0, opGet, 0, doSleep, 200, doPoll, 0},
		func(s Stats, h *history) bool { return h.failedBecause("Pool.Get waits") && h.waiters[0].returned }},
	{"closed, and the peer takes what is before memory that is waited for", settings{}, []byte{opWrite, oneCall, opWrite, oneCall, opWrite, oneCall,
		opWritePool, oneCall, opWritePool, oneCall, opWritePool, oneCall, doTransmit, all, doTransmit, all, opClose, 0, opGet, 0,
		doSleep, 90, doAcknowledge, 0, doPoll, 0, doSleep, 90, doAcknowledge, 0, doPoll, 0, doSleep, 90, doAcknowledge, 0, doPoll, 0, doSleep, 90},
		func(s Stats, h *history) bool { return !s.ConnectionFailed && h.waiters[0].returned }},
	{"closed, and a device never gives back", settings{stubborn: odd}, []byte{opWritePool, oneCall, doTransmit, all, doHold, 0, opClose, 0},
		func(s Stats, h *history) bool { return s.UnprovenBytes > 0 }},
	{"closed under a blocked write", settings{buffer: narrowBuffer}, []byte{opWrite, manyCalls, opWrite, oneCall | other, opFlush, 0, opClose, 0},
		func(s Stats, h *history) bool { return h.ops[0].err != nil && h.ops[1].queued == 0 }},
	{"closed while a call is in the kernel", settings{buffer: narrowBuffer}, []byte{doFault, byte(faultParkBefore), opWrite, manyCalls, opClose, 0, doUnpark, 0},
		func(s Stats, h *history) bool { return h.ops[0].err != nil && s.Sends == 1 }},
	{"closed while a call that has queued is in the kernel", settings{}, []byte{doFault, byte(faultParkAfter), opWrite, oneCall, opClose, 0, doTransmit, all, doAcknowledge, all, doUnpark, 0},
		func(s Stats, h *history) bool { return h.ops[0].err == nil && s.Sends == 1 }},
	{"closed with a linger time of 0", settings{linger: abort}, []byte{opWrite, oneCall, doTransmit, 0, opClose, 0},
		func(s Stats, h *history) bool { return h.k.cut && s.ConnectionFailed }},
	{"closed with a linger time", settings{linger: patient}, []byte{opWrite, oneCall, opClose, 0, doAcknowledge, 1, doPoll, 0},
		func(s Stats, h *history) bool { return !s.ConnectionFailed }},
	{"closed without another descriptor", settings{}, []byte{opWrite, oneCall, doTransmit, all, doOtherFault, failOther, opClose, 0},
		func(s Stats, h *history) bool { return !h.k.cut && !s.ConnectionFailed && !h.k.closing[dupFD] }},
	{"closed without another descriptor, with a foreign message unread", settings{}, []byte{opWrite, oneCall, doTransmit, all, doMessage, 0, doOtherFault, failOther, opClose, 0},
		func(s Stats, h *history) bool { return !h.k.cut && s.ForeignMessages == 1 }},
	{"closed without another descriptor, and the peer never reads", settings{}, []byte{opWrite, oneCall, doOtherFault, failOther, opClose, 0, doSleep, 255, doSleep, 255, doPoll, 0},
		func(s Stats, h *history) bool { return h.k.cut && s.ConnectionFailed && s.UnprovenBytes == 0 }},
	{"closed without another descriptor, the poller and a reset", settings{linger: abort, stubborn: odd}, []byte{opWrite, oneCall, doTransmit, all, doHold, 0, doOtherFault, failOther, doOtherFault, failOther, doOtherFault, failOther, opClose, 0},
		func(s Stats, h *history) bool { return h.k.uncut && s.UnprovenBytes > 0 }},
	{"closed, and the peer closes too", settings{}, []byte{opWrite, oneCall, opClose, 0, doTransmit, all, doHold, 0, doAcknowledge, all, doReset, peerEnds, doPoll, 0},
		func(s Stats, h *history) bool { return !s.ConnectionFailed }},

	{"a deadline passes under a write", settings{buffer: narrowBuffer}, []byte{opWrite, manyCalls, opDeadline, now, opWait, 0},
		func(s Stats, h *history) bool { return h.ops[0].err.(*WriteError).Timeout() }},
	{"a Flush is given up", settings{}, []byte{opWrite, oneCall, opFlushCancelled, 0, opFlush, 0},
		func(s Stats, h *history) bool { return h.waiters[0].err != nil && h.waiters[1].err == nil }},
	{"a deferred completion is read for a goroutine that waits", settings{}, []byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doPoll, 0, opWait, 0},
		func(s Stats, h *history) bool { return s.Wakeups == 0 && h.waiters[0].returned }},
	{"deferred completions are read for a goroutine that wants memory", settings{}, []byte{opWritePool, oneCall, opWritePool, oneCall, opWritePool, oneCall, opWrite, oneCall, doTransmit, all, doAcknowledge, all, doPoll, 0, opGet, 0},
		func(s Stats, h *history) bool { return h.waiters[0].returned }},
	{"the path copies, and then no more", settings{}, slices.Concat([]byte{doCopies, 1},
		slices.Repeat([]byte{opWrite, oneCall, doTransmit, all, doAcknowledge, all, doPoll, 0, doTick, 0, doTick, 0}, copiesToSwitch),
		[]byte{opWrite, oneCall, doCopies, 0, doSleep, 255, opWrite, oneCall | other}),
		func(s Stats, h *history) bool { return s.Fallbacks.Path == 1 && !s.PathCopies }},
}
