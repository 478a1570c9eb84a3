/* Traffic at the kernel's own pace, for tools/bench. Compiled at run time; prints one line of JSON when it ends.
 *
 *   blast frames INTERFACE TO_MAC FROM_MAC|random SOURCE SOURCES DESTINATION DESTINATIONS FRAME_BYTES PPS SECONDS
 *   blast udp FROM ADDRESS PORT SECONDS PAYLOAD_BYTES SEGMENT_BYTES
 *   blast tcp FROM ADDRESS PORT SECONDS MOST_BYTES
 *   blast sink ADDRESS PORT
 *
 * `frames` writes IPv4/UDP frames to the card, past qdisc and socket layer. So the sender costs little, and the router
 * under test is the limit. Each packet's source and destination are drawn at random from SOURCES and DESTINATIONS
 * addresses, counted from the given one (1: always this one). PPS 0 is as fast as possible. `tcp` ends after MOST_BYTES
 * if it has sent them before SECONDS have passed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define MOST_FRAME 1514
#define CHUNK (1 << 17)
#define UDP_SEGMENT 103
#define UDP_PORT 9

struct frame {
	uint8_t to[6], from[6];
	uint16_t type;
	uint8_t version_words, tos;
	uint16_t bytes, id, fragment;
	uint8_t ttl, protocol;
	uint16_t checksum;
	uint32_t source, destination;
	uint16_t source_port, destination_port, length, udp_checksum;
	uint8_t payload[MOST_FRAME - 42];
} __attribute__((packed));

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint64_t draw(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void read_mac(const char *text, uint8_t *mac)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) {
		fprintf(stderr, "%s is no MAC\n", text);
		exit(2);
	}
}

static void sum_header(struct frame *f)
{
	const uint16_t *words = (const void *)&f->version_words;
	uint32_t sum = 0;

	f->checksum = 0;
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	f->checksum = ~(sum + (sum >> 16));
}

static int frames(char **words)
{
	static struct frame batch[BATCH];
	struct iovec pieces[BATCH];
	struct mmsghdr messages[BATCH] = {};
	struct sockaddr_ll card = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(words[0]) };
	int random_mac = !strcmp(words[2], "random"), size = atoi(words[7]), one = 1;
	uint32_t source = ntohl(inet_addr(words[3])), destination = ntohl(inet_addr(words[5]));
	uint32_t sources = atoi(words[4]), destinations = atoi(words[6]);
	double pps = atof(words[8]), seconds = atof(words[9]), began, end;
	uint64_t sent = 0;
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	if (fd < 0 || bind(fd, (void *)&card, sizeof(card)))
		die(words[0]);
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	seed ^= (uint64_t)getpid() << 32 ^ (uint64_t)(now() * 1e9);
	for (int i = 0; i < BATCH; i++) {
		struct frame *f = &batch[i];

		read_mac(words[1], f->to);
		if (!random_mac)
			read_mac(words[2], f->from);
		f->type = htons(ETHERTYPE_IP);
		f->version_words = 0x45;
		f->bytes = htons(size - 14);
		f->fragment = htons(0x4000);
		f->ttl = 64;
		f->protocol = IPPROTO_UDP;
		f->source_port = f->destination_port = htons(UDP_PORT);
		f->length = htons(size - 34);
		pieces[i] = (struct iovec){ f, size };
		messages[i].msg_hdr.msg_iov = &pieces[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	began = now();
	end = began + seconds;
	for (double at = began; at < end; at = now()) {
		int count = BATCH, done;

		if (pps) {
			double allowed = (at - began) * pps - sent;

			if (allowed < 1) {
				usleep(200);
				continue;
			}
			count = allowed < BATCH ? (int)allowed : BATCH;
		}
		for (int i = 0; i < count; i++) {
			struct frame *f = &batch[i];

			f->source = htonl(source + (sources > 1 ? draw() % sources : 0));
			f->destination = htonl(destination + (destinations > 1 ? draw() % destinations : 0));
			if (random_mac) {
				uint64_t mac = draw();

				memcpy(f->from, &mac, 6);
				f->from[0] = (f->from[0] & 0xfe) | 2;
			}
			sum_header(f);
		}
		done = sendmmsg(fd, messages, count, 0);
		if (done < 0 && errno != ENOBUFS && errno != EAGAIN)
			die("sendmmsg");
		sent += done > 0 ? done : 0;
	}
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent, now() - began);
	return 0;
}

static struct addrinfo *read_address(const char *address, const char *port, int type)
{
	struct addrinfo hints = { .ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV }, *found;

	if (getaddrinfo(address, port, &hints, &found))
		die(address);
	return found;
}

static int open_bound(const char *address, const char *port, int type)
{
	struct addrinfo *own = read_address(address, port, type);
	int one = 1, fd = socket(own->ai_family, type, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, own->ai_addr, own->ai_addrlen))
		die(address);
	return fd;
}

static int open_sender(char **words, int type)
{
	struct addrinfo *other = read_address(words[1], words[2], type);
	int fd = open_bound(words[0], "0", type);

	if (connect(fd, other->ai_addr, other->ai_addrlen))
		die(words[1]);
	return fd;
}

static int udp(char **words)
{
	static uint8_t data[65536];
	int size = atoi(words[4]), segment = atoi(words[5]), fd = open_sender(words, SOCK_DGRAM);
	double began, seconds = atof(words[3]);
	uint64_t sent = 0;

	if (segment && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)))
		die("UDP_SEGMENT");
	for (began = now(); now() < began + seconds;)
		if (send(fd, data, size, 0) == size)
			sent += size;
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent, now() - began);
	return 0;
}

static int tcp(char **words)
{
	static uint8_t data[CHUNK];
	double began, seconds = atof(words[3]);
	struct timeval patience = { .tv_sec = (long)seconds + 2 };
	int fd = open_sender(words, SOCK_STREAM);
	uint64_t sent = 0, most = strtoull(words[4], 0, 10);
	ssize_t done;

	/* A stream that was cut must not block the benchmark. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	for (began = now(); sent < most && now() < began + seconds; sent += done) {
		done = send(fd, data, sizeof(data), MSG_NOSIGNAL);
		if (done < 0)
			break;
	}
	printf("{\"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent, now() - began);
	return 0;
}

/* Accept streams one after another, for ever. Print a line for each: bytes, and seconds from first byte to last. */
static _Noreturn void sink(char **words)
{
	static uint8_t data[1 << 20];
	int listener = open_bound(words[0], words[1], SOCK_STREAM);

	if (listen(listener, 8))
		die("listen");
	printf("{\"ready\": 1}\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, 0, 0);
		double began = now(), last = began;
		uint64_t got = 0;
		ssize_t done;

		while ((done = recv(fd, data, sizeof(data), 0)) > 0) {
			got += done;
			last = now();
		}
		close(fd);
		printf("{\"received\": %llu, \"seconds\": %.6f}\n", (unsigned long long)got, last - began);
		fflush(stdout);
	}
}

int main(int count, char **words)
{
	const char *kind = count > 1 ? words[1] : "";

	if (!strcmp(kind, "frames") && count == 12)
		return frames(words + 2);
	if (!strcmp(kind, "udp") && count == 8)
		return udp(words + 2);
	if (!strcmp(kind, "tcp") && count == 7)
		return tcp(words + 2);
	if (!strcmp(kind, "sink") && count == 4)
		sink(words + 2);
	fprintf(stderr, "blast: see the head of blast.c\n");
	return 2;
}
