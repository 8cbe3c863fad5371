/*
 * Csender sends memory by plain C: what a sender costs without a runtime.
 *
 *   csender MODE HOST PORT WRITE TOTAL REGION MEMORY CONTROL LIMIT HEADER
 *
 * MODE is zc for MSG_ZEROCOPY or write for plain sends. WRITE, TOTAL and
 * REGION are bytes. MEMORY is huge, small or heap. CONTROL is a congestion
 * control, or - for the system's. LIMIT is in milliseconds, 0 for none. HEADER
 * is in hexadecimal and goes before the content.
 *
 * It says "ready" when it is connected and its memory filled, waits for a line
 * on standard input, sends, reads the receiver's answer up to its end, waits
 * until all memory is its own again, prints a JSON object, and stays until
 * standard input ends, so that its own end is no part of the measurement.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/errqueue.h> /* needs time.h */

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#ifndef SO_EE_CODE_ZEROCOPY_COPIED
#define SO_EE_CODE_ZEROCOPY_COPIED 1
#endif
#define ORIGIN_ZEROCOPY 5 /* SO_EE_ORIGIN_ZEROCOPY */

enum {
	LONGEST_CALL = 4 << 20,
	DRAIN_EVERY = 32,    /* calls */
	MOST_IN_FLIGHT = 1 << 16, /* calls; net.core.optmem_max ends it long before */
	HUGE_PAGE = 2 << 20,
	LONGEST_HEADER = 256,
	ANSWER = 256,
};

static int zerocopy;
static uint32_t issued, completed;       /* calls with MSG_ZEROCOPY */
static uint32_t lengths[MOST_IN_FLIGHT]; /* of these calls, by number */
static int64_t uncopied, copied;         /* bytes sent by them */
static uint64_t enobufs;

static void die(const char *what)
{
	fprintf(stderr, "csender: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/*
 * dial connects as package net does: with TCP_NODELAY. The control is set before,
 * because a connection that begins with BBR goes on pacing under another one.
 */
static int dial(const char *host, const char *port, const char *control)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST }, *addr;
	int one = 1, fd, err;

	if ((err = getaddrinfo(host, port, &hints, &addr))) {
		fprintf(stderr, "csender: address %s: %s\n", host, gai_strerror(err));
		exit(1);
	}
	if ((fd = socket(addr->ai_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP)) < 0)
		die("socket");
	if (strcmp(control, "-") && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control, strlen(control)))
		die("setsockopt TCP_CONGESTION");
	if (connect(fd, addr->ai_addr, addr->ai_addrlen))
		die("connect");
	freeaddrinfo(addr);
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt TCP_NODELAY");
	if (zerocopy && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one))
		die("setsockopt SO_ZEROCOPY");
	return fd;
}

static uint8_t *allocate(size_t n, const char *kind)
{
	uint8_t *p;

	if (!strcmp(kind, "heap")) {
		if (!(p = malloc(n)))
			die("malloc");
		return p;
	}
	p = mmap(NULL, n + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	p = (uint8_t *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	madvise(p, n, strcmp(kind, "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	return p;
}

/* fill writes the pattern that zcperf's receiver can check (its pattern.go). */
static void fill(uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t x = (i / 8 + 1) * 0x9e3779b97f4a7c15u;

		x ^= x >> 32;
		x = htole64(x * 0xd6e8feb86659fd93u);
		memcpy(p + i, &x, n - i < 8 ? n - i : 8);
	}
}

static void complete(const struct sock_extended_err *ee)
{
	if (ee->ee_errno || ee->ee_origin != ORIGIN_ZEROCOPY)
		return;
	for (uint32_t id = ee->ee_info; id != ee->ee_data + 1; id++) {
		completed++;
		if (ee->ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
			copied += lengths[id % MOST_IN_FLIGHT];
		else
			uncopied += lengths[id % MOST_IN_FLIGHT];
	}
}

/* drain reads the error queue until it is empty. */
static void drain(int fd)
{
	char control[128];

	for (;;) {
		struct msghdr msg = { .msg_control = control, .msg_controllen = sizeof control };

		if (recvmsg(fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN)
				return;
			die("recvmsg MSG_ERRQUEUE");
		}
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
			if ((c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) ||
			    (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR))
				complete((void *)CMSG_DATA(c));
	}
}

/* wait_completion waits until the error queue has something, and reads it. */
static void wait_completion(int fd)
{
	struct pollfd p = { .fd = fd };

	if (completed == issued) {
		fprintf(stderr, "csender: ENOBUFS with nothing in flight, as when one call is larger than RLIMIT_MEMLOCK\n");
		exit(1);
	}
	if (poll(&p, 1, -1) < 0 && errno != EINTR)
		die("poll");
	drain(fd);
}

/* send_all sends n bytes and returns the number of calls. */
static uint64_t send_all(int fd, const uint8_t *p, size_t n)
{
	int flags = MSG_NOSIGNAL | (zerocopy ? MSG_ZEROCOPY : 0);
	uint64_t calls = 0;

	while (n > 0) {
		ssize_t sent = send(fd, p, n < LONGEST_CALL ? n : LONGEST_CALL, flags);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == ENOBUFS && zerocopy) {
			enobufs++;
			wait_completion(fd);
			continue;
		}
		if (sent < 0)
			die("send");
		p += sent;
		n -= sent;
		calls++;
		if (!zerocopy) {
			copied += sent;
			continue;
		}
		lengths[issued++ % MOST_IN_FLIGHT] = sent;
		if (issued % DRAIN_EVERY == 0)
			drain(fd);
	}
	return calls;
}

static void send_header(int fd, const char *hex)
{
	uint8_t header[LONGEST_HEADER];
	size_t n = 0;

	for (unsigned byte; n < sizeof header && sscanf(hex, "%2x", &byte) == 1; hex += 2)
		header[n++] = byte;
	if (n > 0 && send(fd, header, n, MSG_NOSIGNAL) != (ssize_t)n)
		die("send the header");
}

/* read_answer reads up to the end of the stream, and returns how much that was. */
static size_t read_answer(int fd, uint8_t *answer)
{
	for (size_t n = 0;;) {
		ssize_t got = recv(fd, answer + n, ANSWER - n, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			die("read the receiver's answer");
		if (got == 0)
			return n;
		n += got;
	}
}

int main(int argc, char **argv)
{
	if (argc != 11) {
		fprintf(stderr, "usage: csender zc|write HOST PORT WRITE TOTAL REGION huge|small|heap CONTROL|- LIMIT HEADER\n");
		return 2;
	}
	int64_t size = atoll(argv[4]), total = atoll(argv[5]), region = atoll(argv[6]);
	double limit = atof(argv[9]) / 1e3;
	int64_t sent = 0, writes = 0, off = 0;
	uint64_t calls = 0;
	char line[16], control[16] = "";
	socklen_t control_len = sizeof control - 1;
	uint8_t answer[ANSWER];

	zerocopy = !strcmp(argv[1], "zc");
	uint8_t *memory = allocate(region, argv[7]);
	fill(memory, region);
	int fd = dial(argv[2], argv[3], argv[8]);
	getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control, &control_len);
	send_header(fd, argv[10]);
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		return 0;

	double start = now(CLOCK_MONOTONIC), spent = now(CLOCK_PROCESS_CPUTIME_ID);
	while (sent < total && (limit == 0 || now(CLOCK_MONOTONIC) - start < limit)) {
		int64_t n = total - sent < size ? total - sent : size;

		calls += send_all(fd, memory + off, n);
		sent += n;
		writes++;
		off = off + n == region ? 0 : off + n;
	}
	if (shutdown(fd, SHUT_WR))
		die("shutdown");
	size_t answered = read_answer(fd, answer);
	while (completed != issued)
		wait_completion(fd);
	double seconds = now(CLOCK_MONOTONIC) - start;
	double cpu = now(CLOCK_PROCESS_CPUTIME_ID) - spent;

	printf("{\"bytes\":%" PRId64 ",\"writes\":%" PRId64 ",\"calls\":%" PRIu64 ",\"seconds\":%.9f,\"cpu\":%.9f,"
	       "\"uncopied\":%" PRId64 ",\"copied\":%" PRId64 ",\"enobufs\":%" PRIu64 ",\"control\":\"%s\",\"answer\":\"",
	       sent, writes, calls, seconds, cpu, uncopied, copied, enobufs, control);
	for (size_t i = 0; i < answered; i++)
		printf("%02x", answer[i]);
	puts("\"}");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin))
		;
	return 0;
}
