/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Free traffic: which packets are free because of FREE_DESTINATIONS. PAYMENT_SERVICES are in the same tables, so that
 * one look-up finds either; lane.h decides about packets to and from them.
 *
 * A packet is free by its destination, or by its source where a forged source address gains nothing. So a client's
 * upload to the internet isn't free if it merely names a free destination as its source, or quotes one in an ICMP
 * error. Nor is a download from the internet free if only the client's own address is within a free prefix. An ICMP
 * error is free if the connection that it quotes is free.
 */
#ifndef NGP_FREE_H
#define NGP_FREE_H

#include "packet.h"

/* What a look-up can find: a packet is free by its destination, or by its source; goes to a payment service, or comes
 * from one. */
#define BY_DESTINATION 1
#define BY_SOURCE 2
#define TO_SERVICE 4
#define FROM_SERVICE 8
#define AS_FREE (BY_DESTINATION | BY_SOURCE)
#define AS_SERVICE (TO_SERVICE | FROM_SERVICE)

/* Return what a rule says about a port: AS_FREE (it is free), AS_SERVICE (it is a payment service's), both, or 0. This
 * function isn't static, so that the verifier checks it once, instead of once for each call. In exchange it must test
 * its arguments, since the verifier then assumes that they may be null. */
__noinline int serves(const struct free_rule *rule, __u32 protocol, __u32 port)
{
	int found = 0;

	if (!rule)
		return 0;
	if (rule->all)
		found = AS_FREE;
	for (__u32 i = 0; i < SERVICES; i++) {
		__u32 offered = rule->service[i].protocol, spoken = offered & ~RATED;

		if (i >= rule->services)
			break;
		if ((!spoken || spoken == protocol) && (!rule->service[i].port || rule->service[i].port == port))
			found |= offered & RATED ? AS_SERVICE : AS_FREE;
	}
	return found;
}

INLINE struct free_rule *free_rule(const struct packet *p, const __u32 *address)
{
	if (p->v6) {
		struct free6 key = { .bits = 128 };

		__builtin_memcpy(key.address, address, 16);
		return bpf_map_lookup_elem(&ngp_free6, &key);
	} else {
		struct free4 key = { .bits = 32, .address = { address[0] } };

		return bpf_map_lookup_elem(&ngp_free4, &key);
	}
}

/* Say which of `wanted` apply to a packet. Not static: see `serves`. (When this was static, checking it took most of
 * the second in which the programs were loaded.) */
__noinline int matches_free(struct __sk_buff *skb, const struct packet *p, int wanted)
{
	int to = wanted & (BY_DESTINATION | TO_SERVICE), from = wanted & (BY_SOURCE | FROM_SERVICE), found = 0;
	__be16 ports[2] = {};
	struct free_rule *rule;

	if (!p)
		return 0;
	read_ports(skb, p, ports);
	if (to) {
		rule = free_rule(p, p->destination);
		if (rule)
			found = to & serves(rule, p->protocol, ports[1]);
		if (rule && p->error)
			found |= to & serves(rule, p->quoted_protocol, p->quoted_ports[0]);
	}
	if (found || !from)
		return found;
	rule = free_rule(p, p->source);
	if (rule)
		found = from & serves(rule, p->protocol, ports[0]);
	if (found || !p->error)
		return found;
	rule = free_rule(p, p->quoted);
	return rule ? from & serves(rule, p->quoted_protocol, p->quoted_ports[1]) : 0;
}

INLINE int any_free(const struct config *config, const struct packet *p)
{
	return config->flags & (p->v6 ? FREE6 : FREE4);
}

INLINE int any_given(const struct config *config, const struct packet *p)
{
	return any_free(config, p) || (config->flags & OFFERS(p->v6));
}

INLINE int is_free(struct __sk_buff *skb, const struct config *config, const struct packet *p, int by)
{
	return any_free(config, p) && matches_free(skb, p, by);
}

/* Say how a packet at egress can be free: by its source if it goes to a client, and by its destination if it comes from
 * the mesh or a LAN. */
APART int free_by(const struct packet *p, __u32 ingress_ifindex)
{
	struct neighbour *neighbour = find_neighbour(p);
	int by = !neighbour || (neighbour->flags & BUYS_FROM_US) ? BY_SOURCE : 0;

	return class_of(ingress_ifindex) & (MESH | LAN) ? by | BY_DESTINATION : by;
}

#endif
