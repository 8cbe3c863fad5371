#include "textflag.h"

// trapHandler<> is called by the kernel for SIGSEGV, on the signal stack, as a C function (signal, siginfo, context). It
// calls nothing but write(2) and ends in the handler that was there before, with the stack and all registers that the
// calling convention hands on as it got them. See guardtrap_linux_amd64.go.
TEXT trapHandler<>(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	CMPL	8(SI), $2             // si_code: SEGV_ACCERR, the memory is there and not writable
	JNE	next
	MOVQ	16(SI), R8            // si_addr
	MOVQ	·trapTable(SB), R9
	MOVQ	·trapsUsed(SB), R10

look:
	TESTQ	R10, R10
	JEQ	next
	CMPQ	R8, 8(R9)             // end
	JCC	miss
	CMPQ	R8, 0(R9)             // begin
	JCS	miss
	PUSHQ	DI
	PUSHQ	SI
	PUSHQ	DX
	MOVL	$2, DI
	LEAQ	24(R9), SI            // message
	MOVQ	16(R9), DX            // n
	MOVL	$1, AX                // SYS_write
	SYSCALL                       // keeps all but AX, CX, R11
	POPQ	DX
	POPQ	SI
	POPQ	DI

miss:
	ADDQ	$512, R9
	DECQ	R10
	JMP	look

next:
	MOVQ	·trapNext(SB), AX
	JMP	AX

// func trapHandler() uintptr
TEXT ·trapHandler(SB), NOSPLIT, $0-8
	LEAQ	trapHandler<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
