/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Lanes: uncharged access to payment services, so that a neighbour whose only way out is this gateway can pay it.
 *
 * PAYMENT_SERVICES are single ports of single hosts. Each neighbour has a lane to them: a token bucket of bytes, for
 * both directions together. So no neighbour's flood takes another's room. Links that aren't known share one lane. Keys
 * and link addresses cost nothing to make, so all neighbours that never paid also share one more bucket, which is as
 * large as the buckets of 16 lanes.
 *
 * Each lane remembers which conversations with services its neighbour began. A flood of conversations makes a lane
 * forget older ones, but only those of the flooding neighbour. An answer of a service goes only to the link that
 * asked. Any other packet from a service, or with a service's forged address, is charged like all other traffic. Lanes
 * take no packets with options or extension headers, as options could make the service's host send them on to another
 * host. They take no later fragments, as these don't show their ports.
 *
 * Packets to and from a service on this host aren't forwarded, so they need no lane. But they take room in the same
 * bucket, and are dropped if there is none; no other rule of lanes applies. Answers count as well: else a neighbour
 * could draw a thousand times as many bytes as it sends, by a few TCP acknowledgements.
 */
#ifndef NGP_LANE_H
#define NGP_LANE_H

#include "free.h"
#include "../token.h"

#define NEWCOMERS 16                                          /* all that never paid share a bucket of 16 lanes' size */
#define LONGEST_BYTES (40 + 65535)                            /* the longest packet that IPv6 fragments can make */

enum gift { NOT_GIVEN, GIVEN, REFUSED };

INLINE struct lane *lane_number(__u32 number)
{
	return bpf_map_lookup_elem(&ngp_lanes, &number);
}

INLINE int has_options(const struct packet *p)
{
	return p->transport != (p->v6 ? 40 : 20);
}

/* May this packet use a lane? A packet of a blocked neighbour may not: it is charged or refused like other traffic. */
APART int is_for_lane(const struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);

	return !has_options(p) && !(neighbour && (neighbour->flags & SHUT_OUT));
}

/* Return the hash of a packet's conversation with a service; packets of both directions have the same hash. An ICMP
 * error belongs to the conversation of the packet that it quotes, which went in the other direction: an error to a
 * service quotes a packet from that service. */
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
	barrier_var(way);                                         /* else clang adds by "or": old verifiers lose the bound */
	lane->asked[at + way] = hash;
	return 0;
}

/* Take room for `bytes` in a lane. Returns 0 if there is none. Take the room from the neighbour's own bucket first: the
 * part of a flood that is refused there takes nothing from the bucket that all newcomers share. */
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

/* Take `room` bytes in a lane, and count `bytes` as carried. Returns 0 if the lane has no room. */
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

/* Take room in its neighbour's lane for a packet to or from a payment service, if the packet may use the lane. Returns
 * an enum gift: GIVEN if it passes uncharged, REFUSED if the lane has no room, NOT_GIVEN if it must be paid for like
 * other traffic. Not static: see `serves`. */
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

/* Find out whether a packet is carried uncharged, as free traffic or in a lane. This takes the packet's room in the
 * lane, so call it once for each packet. Returns an enum gift, as use_lane does. */
INLINE int gives(struct __sk_buff *skb, const struct packet *p, int wanted)
{
	int found = matches_free(skb, p, wanted);

	if (found & AS_FREE)
		return GIVEN;
	return found ? use_lane(skb, p, found == TO_SERVICE) : NOT_GIVEN;
}

/* Does a packet go to a payment service on this host, or (to_service: 0) come from one? The service's ports are
 * entered under the loopback address, which stands for all addresses of this host. A program may listen at all of
 * them, and must not be flooded by an address that net.conf doesn't name. */
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

/* Take `room` bytes in the neighbour's lane for a packet between that neighbour and a service of this host. Returns 1
 * if the lane has no room. Packets with options count like all others, or options would be a way round the rate. A
 * blocked neighbour's packets pass too, up to the rate: its node must reach ours as long as there is a channel between
 * them with our coins in it. */
APART int is_over_rate(const struct config *config, const struct packet *p, __u32 room)
{
	struct neighbour *neighbour = find_neighbour(p);
	struct lane *lane = lane_of(neighbour);

	return !lane || !enters(config, lane, neighbour, room, p->bytes);
}

#endif
