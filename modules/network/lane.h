/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Lanes: what passes uncharged, so that a neighbour whose only way out is this gateway can pay it at all.
 *
 * PAYMENT_SERVICES are single ports of single hosts. Each neighbour has a lane to them, a token bucket for both
 * directions together, so nobody's flood takes another's room; those that aren't known share one. Keys and link
 * addresses cost nothing, therefore all lanes of those that never paid also share a bucket of some lanes' size.
 *
 * Who may be answered is remembered from what was asked, lane by lane, so that a flood washes out nobody else's
 * conversations. An answer goes only to the link that asked; any other packet from a service, or under its forged
 * address, is traffic like all else. Packets with options or extension headers, and fragments behind the first, aren't
 * let through: they could be led on from the service's host, or hide their ports.
 *
 * A service on this very host isn't forwarded to, and needs no lane to be reached. What neighbours exchange with it takes
 * room in the same bucket, and is dropped where there is none; nothing else is asked. Answers count as well: a few
 * acknowledgements would else draw a thousand times their size.
 */
#ifndef NGP_LANE_H
#define NGP_LANE_H

#include "free.h"
#include "../token.h"

#define NEWCOMERS 16                                          /* so many lanes' worth for all who never paid */
#define LONGEST_BYTES (40 + 65535)                            /* of what fragments of IPv6 are put together to */

enum gift { NOT_GIVEN, GIVEN, REFUSED };

INLINE struct lane *lane_number(__u32 number)
{
	return bpf_map_lookup_elem(&ngp_lanes, &number);
}

INLINE int has_options(const struct packet *p)
{
	return p->transport != (p->v6 ? 40 : 20);
}

/* Whoever is blocked gets no lane, and pays or is refused like for anything else. */
APART int is_for_lane(const struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);

	return !has_options(p) && !(neighbour && (neighbour->flags & SHUT_OUT));
}

/* An ICMP error speaks of a packet of the other direction: to a service it quotes what came from there. */
APART __u64 hash_of(struct __sk_buff *skb, const struct packet *p, int to_service)
{
	__be16 ports[2] = { p->quoted_ports[1], p->quoted_ports[0] };
	const __u32 *remote_end = p->error ? p->quoted : p->source;
	const __u32 *client = to_service ? remote_end : p->destination;
	const __u32 *service = to_service ? p->destination : remote_end;
	__u64 hash;

	if (!p->error)
		read_ports(skb, p, ports);
	hash = mix(mix(p->link.ifindex, p->link.mac_head), p->link.mac_tail_role);
	for (int i = 0; i < 4; i++)
		hash = mix(hash, (__u64)client[i] << 32 | service[i]);
	hash = mix(hash, to_service ? (__u32)ports[0] << 16 | ports[1] : (__u32)ports[1] << 16 | ports[0]);
	return mix(hash, p->error ? p->quoted_protocol : p->protocol) | 1;
}

APART int was_asked(const struct lane *lane, __u64 hash)
{
	__u32 at = (hash >> 32 & (LANE_SETS - 1)) * LANE_WAYS;

	for (int i = 0; i < LANE_WAYS; i++)
		if (lane->asked[at + i] == hash)
			return 1;
	return 0;
}

APART int note_asked(struct lane *lane, __u64 hash)
{
	__u32 at = (hash >> 32 & (LANE_SETS - 1)) * LANE_WAYS, way;

	if (was_asked(lane, hash))
		return 0;
	for (int i = 0; i < LANE_WAYS; i++) {
		if (lane->asked[at + i])
			continue;
		lane->asked[at + i] = hash;
		return 0;
	}
	way = bpf_get_prandom_u32() & (LANE_WAYS - 1);
	barrier_var(way);                                         /* else an "or" of both, to which older verifiers see no bound */
	lane->asked[at + way] = hash;
	return 0;
}

/* A neighbour's own bucket comes first: what its flood is refused there takes nothing from the other newcomers. */
APART int has_room(const struct config *config, struct lane *lane, const struct neighbour *neighbour, __u32 bytes)
{
	__u64 now = bpf_ktime_get_coarse_ns(), cost_ns = bytes * config->lane_kib_ns >> 10;
	struct lane *newcomers;

	if (!take_token(&lane->ready_ns, cost_ns, config->lane_burst_ns, now))
		return 0;
	if (neighbour && (neighbour->flags & HAS_PAID))
		return 1;
	newcomers = lane_number(NEWCOMERS_LANE);
	return newcomers && take_token(&newcomers->ready_ns, cost_ns / NEWCOMERS, config->lane_burst_ns, now);
}

INLINE struct lane *lane_of(const struct neighbour *neighbour)
{
	return lane_number(neighbour ? neighbour->number : STRANGERS_LANE);
}

/* Take so much room, and count what is carried in it. */
INLINE int enters(const struct config *config, struct lane *lane, const struct neighbour *neighbour, __u32 room, __u32 bytes)
{
	if (!has_room(config, lane, neighbour, room)) {
		count(LANE_OVER_RATE);
		return 0;
	}
	__sync_fetch_and_add(&lane->bytes, bytes);
	count_by(LANE_BYTES, bytes);
	return 1;
}

/* Not static, as matches_free. */
__noinline int use_lane(struct __sk_buff *skb, const struct packet *p, int to_service)
{
	const struct config *config = settings();
	struct neighbour *neighbour;
	struct lane *lane;
	__u64 hash;
	int asks;

	if (!config || !p)
		return NOT_GIVEN;
	asks = to_service && !p->error;
	neighbour = find_neighbour(p);
	lane = lane_of(neighbour);
	if (!lane || !is_for_lane(p) || (p->error && p->bytes > ERROR_BYTES))
		return NOT_GIVEN;
	hash = hash_of(skb, p, to_service);
	if (!asks && !was_asked(lane, hash))
		return NOT_GIVEN;
	if (!enters(config, lane, neighbour, p->bytes, p->bytes))
		return REFUSED;
	if (asks)
		note_asked(lane, hash);
	return GIVEN;
}

/* Is a packet carried for nothing, and if at a rate, is there room for it? Ask once: it takes the room. */
INLINE int gives(struct __sk_buff *skb, const struct packet *p, int wanted)
{
	int found = matches_free(skb, p, wanted);

	if (found & AS_FREE)
		return GIVEN;
	return found ? use_lane(skb, p, found == TO_SERVICE) : NOT_GIVEN;
}

/* Is a packet bound for a service of this host, or (to_service: 0) from one? The loopback address stands for all of the
 * host's: a program that listens at every one would else be flooded by way of another. */
APART int is_of_host(struct __sk_buff *skb, const struct packet *p, int to_service)
{
	__u32 host[4] = {};
	__be16 ports[2] = {};
	struct free_rule *rule;

	host[p->v6 ? 3 : 0] = bpf_htonl(p->v6 ? 1 : 0x7f000001);
	rule = free_rule(p, host);
	read_ports(skb, p, ports);
	return rule && (serves(rule, p->protocol, to_service ? ports[1] : ports[0]) & TO_SERVICE);
}

/* Is there no room for a packet between a neighbour and a service of this host? Options and blocks make no difference
 * here: else options would be the way round the rate, and a blocked neighbour's channel with our node would starve, our
 * coins in it. */
APART int is_over_rate(const struct config *config, const struct packet *p, __u32 room)
{
	struct neighbour *neighbour = find_neighbour(p);
	struct lane *lane = lane_of(neighbour);

	return !lane || !enters(config, lane, neighbour, room, p->bytes);
}

#endif
