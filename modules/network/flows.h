/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Flows: who begins a conversation pays for both of its directions.
 *
 * Where both ends of a conversation are behind neighbours of ours, or in a LAN of ours, addresses don't say who pays: each
 * of two neighbours may have bought the other's address. So what a neighbour paid for on its way to the mesh or a LAN is
 * remembered, and what our LANs send to a neighbour. The answers are then returns, for that payer alone to pay. What goes to
 * the uplink or comes from there needs no memory: the neighbour at this end pays.
 *
 * A payer has room for so many flows and makes room for a new one among its own, the oldest first: its flood makes
 * nobody else's forgotten. A flow is forgotten some time after its payer's last packet, whatever the other end sends.
 * Then the contracts of both ends decide.
 */
#ifndef NGP_FLOWS_H
#define NGP_FLOWS_H

#include "charge.h"

#define FLOW_NS 600000000000ull                               /* a flow is remembered so long */
#define FLOW_REFRESH_NS 1000000000ull                         /* and noted again so often */
#define OURS 0                                                /* the payer of what our LANs began */
#define STRANGERS 0xffffffff                                  /* the payer of what links began that we don't know */

static __u32 our_flows, strangers_flows;

INLINE __u32 payer_of(const struct neighbour *neighbour)
{
	return neighbour ? neighbour->number : STRANGERS;
}

/* The flow that a packet answers. An ICMP error counts as an answer to the packet that it quotes. Not static, as
 * matches_free; neither are the next ones. */
__noinline int read_answered(struct __sk_buff *skb, const struct packet *p, struct flow *flow)
{
	__be16 ports[2] = {};
	__u32 protocol;

	if (!p || !flow)
		return 0;
	protocol = p->error ? p->quoted_protocol : p->protocol;
	ports[0] = p->quoted_ports[1];
	ports[1] = p->quoted_ports[0];
	if (!has_ports(protocol))
		ports[0] = ports[1] = 0;
	else if (!p->error)
		read_ports(skb, p, ports);
	__builtin_memcpy(flow->from, p->destination, 16);
	__builtin_memcpy(flow->to, p->error ? p->quoted : p->source, 16);
	flow->from_port = ports[1];
	flow->to_port = ports[0];
	flow->protocol = protocol | (__u32)p->v6 << 8;
	return 0;
}

/* The flow that a packet is of, out of the one that it would answer. */
INLINE void turn(const struct flow *answered, struct flow *flow)
{
	__builtin_memcpy(flow->from, answered->to, 16);
	__builtin_memcpy(flow->to, answered->from, 16);
	flow->from_port = answered->to_port;
	flow->to_port = answered->from_port;
	flow->protocol = answered->protocol;
}

INLINE int is_fresh(const struct memory *memory, __u64 now)
{
	return now - memory->seen_ns < FLOW_NS || memory->seen_ns > now; /* another processor's clock may be a tick ahead */
}

/* Who began a flow; returns 0 where nobody is known to have. */
__noinline int find_payer(const struct flow *flow, __u32 *payer)
{
	struct memory *memory;
	struct flow key;

	if (!flow || !payer)
		return 0;
	key = *flow;                                              /* no argument of such a function is a key on Linux 6.1 */
	memory = bpf_map_lookup_elem(&ngp_flows, &key);
	if (!memory || !is_fresh(memory, now_ns()))
		return 0;
	*payer = memory->payer;
	return 1;
}

/* Take the payer's next place; the flow that has it is forgotten, unless somebody else began it meanwhile. */
APART int make_room(const struct place *place)
{
	struct flow *held = bpf_map_lookup_elem(&ngp_places, place), old;
	struct memory *memory;

	if (!held)
		return 0;
	old = *held;
	memory = bpf_map_lookup_elem(&ngp_flows, &old);
	if (memory && memory->payer == place->payer && memory->place == place->number)
		bpf_map_delete_elem(&ngp_flows, &old);
	return 0;
}

/* Remember who began the flow that `answered` answers: the sender of a packet, or (ours) one of our LANs. */
__noinline int remember(const struct packet *p, const struct flow *answered, int ours)
{
	struct neighbour *neighbour;
	struct memory *memory, fresh = {};
	struct place place = {};
	struct flow flow;
	__u32 *number, most;
	__u64 now = now_ns();

	if (!p || !answered || p->error || p->protocol == LATER_FRAGMENT)
		return 0;
	turn(answered, &flow);
	memory = bpf_map_lookup_elem(&ngp_flows, &flow);
	neighbour = ours ? 0 : find_neighbour(p);
	number = ours ? &our_flows : neighbour ? &neighbour->flows : &strangers_flows;
	most = neighbour && !(neighbour->flags & HAS_PAID) ? FLOWS_ON_GRACE : FLOWS;
	place.payer = ours ? OURS : payer_of(neighbour);
	if (memory && memory->payer == place.payer) {
		if (now - memory->seen_ns > FLOW_REFRESH_NS)
			memory->seen_ns = now;
		return 0;
	}
	place.number = __sync_fetch_and_add(number, 1) & (most - 1);
	make_room(&place);
	if (bpf_map_update_elem(&ngp_places, &place, &flow, BPF_ANY))
		return 0;
	fresh.payer = place.payer;
	fresh.place = place.number;
	fresh.seen_ns = now;
	bpf_map_update_elem(&ngp_flows, &flow, &fresh, BPF_ANY);
	return 0;
}

#endif
