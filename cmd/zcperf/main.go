// Zcperf shows what sending without copying is worth on a machine, a link and a
// kernel: it sends real memory by plain Write, by a naive MSG_ZEROCOPY loop and
// by package zcnet, side by side, checks that what arrives is right, and prints
// what it costs the sending host and the sending process, throughput, and how
// much went uncopied.
//
//	zcperf [bench]            over loopback, and over a copy-free link of its own where it may build one
//	zcperf serve -addr A      receives, on another host
//	zcperf send -to A         sends to a serve
//	zcperf sweep              finds from which size of write on zero-copy pays, and draws what it costs
//	zcperf probe [A]          tells whether zero-copy is on, and if not, why not
//
// The cost is the sender's side: what the machine was busy, less what worked
// for the receiver. It is known on links that begin and end on this machine;
// over a real network the process's own time stands for it. Modes in C and one
// that does the least Go can do are there to compare with (-mode).
//
// Each command explains its flags with -h. The exit status is 0 if all went well, 1 if something failed or a byte
// arrived wrong, 2 if the command line was wrong, and 130 after an interrupt.
package main

import "github.com/zcnet-go/zcnet/internal/cli"

// This file lists the commands.

func main() {
	if hired() {
		return
	}
	cli.Main(commands().Run)
}

func commands() cli.Program {
	return cli.Program{
		Name:  "zcperf",
		About: "Zcperf measures sending without copying: plain Write, a naive MSG_ZEROCOPY loop and zcnet.",
		Commands: []cli.Command{
			{Name: "bench", Synopsis: benchSynopsis, About: "compare the modes side by side (the default command)", Run: runBench},
			{Name: "serve", Synopsis: serveSynopsis, About: "receive from any number of senders until interrupted", Run: runServe},
			{Name: "send", Synopsis: sendSynopsis, About: "send to a serve on another host", Run: runSend},
			{Name: "sweep", Synopsis: sweepSynopsis, About: "find from which size of write on zero-copy pays here, and draw what it costs", Run: runSweep},
			{Name: "probe", Synopsis: probeSynopsis, About: "tell whether zero-copy is on, and if not, why not", Run: runProbe},
		},
	}
}
