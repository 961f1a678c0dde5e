/* As scenarios.c: those of memory, of who waits for it, and of what is given back. */
#include "scenario.h"

static void slots_put_by_for_a_waiter_that_gave_up_come_back(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 4);
    CHECK(mp_grant(&sender) == 0 && mp_free_slots(&sender) == 0);
    CHECK(!mp_wait_end(&writer[0]));
    CHECK(mp_waiters(&sender) == 0);
    CHECK(mp_free_slots(&sender) == 2);
}

static void a_second_wait_of_the_same_owner_is_not_slept_over(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 4);
    CHECK(mp_grant(&sender) == 0);
    CHECK(!mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[0], 1); /* the sender is awake: nothing is written to the eventfd */
    (void)mp_take_dirty(&sender, 0);
    CHECK(!mp_sleep_begin(&sender, 1000000)); /* it has served it instead */
    CHECK(mp_wait_over(&writer[0]) && mp_waiters(&sender) == 0 && mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[0], 4); /* more than there is: what lingers must go, and does in a turn */
    CHECK(!mp_sleep_begin(&sender, 1000000) && !mp_wait_over(&writer[0]));
    CHECK(mp_waiters(&sender) == 1 && mp_sleep_begin(&sender, 1000000));
    CHECK(!mp_wait_end(&writer[0]) && mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
}

static void a_waiter_that_gives_up_lets_the_next_one_be_served(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    (void)mp_take_dirty(&sender, 0);
    mp_wait_begin(&writer[0], 4);
    mp_wait_begin(&writer[1], 1);
    CHECK(mp_grant(&sender) == 0); /* nobody overtakes the first one */
    while (was_woken()) {
    }
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000000));
    CHECK(!mp_wait_end(&writer[0]));
    CHECK(was_woken());
    mp_sleep_end(&sender);
    CHECK(mp_grant(&sender) == 1 && !mp_wait_end(&writer[0]) && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
}

static void memory_given_back_between_look_and_sleep_is_granted(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    (void)mp_take_dirty(&sender, 0);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[1], 1);
    CHECK(mp_grant(&sender) == 0);
    mp_drop_stash(&writer[0]); /* the sender is awake: nothing is written to the eventfd */
    CHECK(!mp_sleep_begin(&sender, 1000000));
    CHECK(mp_wait_over(&writer[1]) && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
}

static void waiters_are_served_in_order_of_arrival_and_nobody_barges(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 60000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(2, 1, 10, &place) == MP_NO_MEMORY && place.units == 1);
    static const int order[] = {2, 0, 1};
    for (int i = 0; i < 3; i++) mp_wait_begin(&writer[order[i]], i == 0 ? 3 : 1);
    CHECK(mp_grant(&sender) == 0);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    CHECK(put(3, 2, 10, &place) == MP_NO_MEMORY); /* four slots are free, three writers wait */
    CHECK(mp_grant(&sender) == 2);
    CHECK(mp_wait_end(&writer[2]) && mp_wait_end(&writer[0]) && !mp_wait_over(&writer[1]));
    for (int i = 2; i >= 0; i -= 2) mp_drop_stash(&writer[i]);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    check_all_free(4);
}

static void a_writer_that_was_served_and_has_not_run_yet_stops_nobody(void) {
    struct mp_place place;
    open_pool(8, 100000);
    CHECK(put(3, 0, 90000, &place) == MP_DONE && mp_free_slots(&sender) == 2);
    CHECK(put(0, 1, 30000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(0, 1, 20000, &place) == MP_NO_MEMORY);
    mp_wait_begin(&writer[0], 1);
    mp_wait_begin(&writer[1], 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    CHECK(mp_grant(&sender) == 2 && mp_wait_end(&writer[0]));
    CHECK(put(0, 1, 40000, &place) == MP_DONE && place.index == 1); /* writer 1 sleeps still */
    CHECK(mp_wait_end(&writer[1]));
    mp_drop_stash(&writer[1]);
    CHECK(take(1, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(8);
}

static void a_batch_that_found_no_memory_grows_by_what_is_granted(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(0, 0, 10, &place) == MP_DONE && put(1, 1, 40000, &place) == MP_DONE);
    CHECK(mp_free_slots(&sender) == 0);
    CHECK(put(0, 0, 20000, &place) == MP_NO_MEMORY && place.units == 2);
    CHECK(place.sealed_count == 0);
    mp_wait_begin(&writer[0], 2);
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && mp_release(&sender, slot));
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    CHECK(put(0, 0, 20000, &place) == MP_DONE && place.index == 1);
    CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(4);
}

static void what_was_granted_to_the_dead_comes_back(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(3, 0, 20000, &place) == MP_DONE);
    mp_wait_begin(&writer[0], 3); /* dies with two slots put by */
    mp_wait_begin(&writer[1], 2); /* dies with its grant untouched */
    CHECK(mp_grant(&sender) == 0);
    sender.alive[1] = 0;
    CHECK(mp_reap(&sender, 1) == 2);
    CHECK(mp_grant(&sender) == 1 && mp_free_slots(&sender) == 0);
    sender.alive[2] = 0;
    CHECK(mp_reap(&sender, 2) == 2);
    CHECK(mp_waiters(&sender) == 0 && mp_free_slots(&sender) == 2);
    CHECK(mp_owner_reusable(&sender, 1) && mp_owner_reusable(&sender, 2));
}

static void a_grant_that_was_not_used_goes_back_before_the_next_wait(void) {
    open_pool(4, 100000);
    mp_wait_begin(&writer[0], 3);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    mp_drop_stash(&writer[0]);
    check_all_free(4);
}

static void records_that_may_roam_leave_a_full_batch_to_the_sender(void) {
    static const uint8_t value[600];
    const struct mp_record record = {.value = value, .value_bytes = sizeof value, .key_bytes = -1};
    const struct mp_record *list = &record;
    struct mp_place place;
    open_pool(4, 2000); /* in the end a small record would have room, and one more of 600 B not */
    CHECK(put(0, 0, 600, &place) == MP_DONE && put(0, 0, 600, &place) == MP_DONE);
    CHECK(mp_take_dirty(&sender, 0) == 1);
    CHECK(put(0, 0, 200, &place) == MP_DONE && place.sealed_count == 0);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    CHECK(mp_append_run(&writer[0], 0, &list, 1, 1, &place) == MP_FULL);
    CHECK(place.sealed_count == 1 && mp_take_dirty(&sender, 0) == 1);
    CHECK(writer[0].stash != MP_NONE && mp_free_slots(&sender) == 1);
    /* Elsewhere it uses what it was granted; here nothing was opened behind the full batch. */
    CHECK(mp_append_run(&writer[0], 1, &list, 1, 1, &place) == MP_DONE && place.index == 0);
    CHECK(writer[0].stash == MP_NONE && mp_free_slots(&sender) == 2);
    CHECK(take(0, NULL) == 3 && take(1, NULL) == 1);
    /* The batch is full and sealed by somebody else: then the next one is opened. */
    CHECK(mp_append_run(&writer[0], 0, &list, 1, 1, &place) == MP_DONE && place.index == 0);
}

static void kept_by(void) {
    /* Writer 0 has taken the bit of a slot and stands before its word: it is found again. */
    CHECK(mp_free_slots(&sender) == 3);
    CHECK(mp_reap(&sender, 1) == 0);
    CHECK(mp_free_slots(&sender) == 4);
}

static void a_slot_whose_bit_died_with_its_claimer_is_found_by_the_reaper(void) {
    struct mp_place place;
    open_pool(4, 1000);
    stop_at(1, kept_by);
    CHECK(put(1, 0, 10, &place) == MP_DONE && at_step == 0);
    /* The claim went on here, and left a bit of a taken slot: whoever finds it passes by. */
    CHECK(put(1, 1, 10, &place) == MP_DONE);
    CHECK(put(1, 2, 20000, &place) == MP_DONE);
    CHECK(put(1, 1, 2000, &place) == MP_NO_MEMORY && mp_free_slots(&sender) == 0);
}

static void leave(void) { CHECK(!mp_wait_end(&writer[0])); }

static void a_timeout_that_races_the_grant_keeps_nothing(void) {
    open_pool(4, 100000);
    mp_wait_begin(&writer[0], 2);
    stop_at(43, leave); /* between the look and the grant */
    CHECK(mp_grant(&sender) == 0 && at_step == 0);
    check_all_free(4);
    mp_wait_begin(&writer[0], 2);
    CHECK(mp_grant(&sender) == 1);
    CHECK(mp_wait_end(&writer[0])); /* at its deadline, but granted: it has the memory */
    mp_drop_stash(&writer[0]);
    check_all_free(4);
}

static void bits_of_slots_that_are_not_there_are_nobodys(void) {
    struct mp_place place;
    open_pool(4, 100000);
    atomic_fetch_or(&sender.region.free[0], ~UINT64_C(0) << 4); /* by a broken worker */
    CHECK(mp_free_slots(&sender) == 4);
    CHECK(put(0, 0, 60000, &place) == MP_DONE && mp_free_slots(&sender) == 0);
    CHECK(put(1, 1, 100, &place) == MP_NO_MEMORY);
}

static uint32_t lent;

static void leave_a_waiter(void) {
    mp_wait_begin(&writer[2], 4);
    CHECK(mp_waiters(&sender) == 1 && mp_grant(&sender) == 0);
    (void)mp_take_dirty(&sender, 0);
    fall_asleep(1000000);
}

static void seal_and_leave_a_waiter(void) {
    CHECK(take(0, &lent) == 1 && !mp_release(&sender, lent)); /* its writer lives */
    leave_a_waiter();
}

static void who_loses_a_commit_keeps_what_it_was_granted(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 16000, &place) == MP_DONE && put(3, 1, 40000, &place) == MP_DONE);
    CHECK(put(0, 0, 20000, &place) == MP_NO_MEMORY && place.units == 2);
    mp_wait_begin(&writer[0], 2);
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && mp_release(&sender, slot));
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[0]));
    stop_at(13, seal_and_leave_a_waiter); /* both slots lie behind the batch */
    CHECK(put(0, 0, 20000, &place) == MP_DONE && at_step == 0);
    CHECK(writer[0].lost_commits == 1 && place.index == 0 && place.slot != lent);
    CHECK(writer[0].stash == MP_NONE);
}

static void seal_open_another_and_leave_a_waiter(void) {
    struct mp_place place;
    CHECK(take(0, &lent) == 1 && !mp_release(&sender, lent));
    CHECK(put(1, 0, 10, &place) == MP_DONE);
    leave_a_waiter();
}

static void what_a_lost_commit_does_not_need_any_more_goes_to_who_waits(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 16000, &place) == MP_DONE);
    stop_at(13, seal_open_another_and_leave_a_waiter); /* one slot lies behind the batch */
    CHECK(put(0, 0, 1000, &place) == MP_DONE && at_step == 0);
    CHECK(writer[0].lost_commits == 1 && place.index == 1);
    CHECK(was_woken());
}

static void begin_to_wait(void) {
    mp_wait_begin(&writer[1], 2);
    CHECK(mp_waiters(&sender) == 1 && mp_grant(&sender) == 0);
    fall_asleep(1000000);
}

static void what_a_compressor_does_not_use_goes_to_who_waits(void) {
    struct mp_place place;
    open_pool(3, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    (void)mp_take_dirty(&sender, 0);
    static const uint8_t output[20000];
    stop_at(25, begin_to_wait); /* it has the first slot of two */
    CHECK(!mp_compress_end(&writer[0], place.sealed[0], output, sizeof output) && at_step == 0);
    CHECK(was_woken());
    CHECK(mp_grant(&sender) == 1 && mp_wait_end(&writer[1]));
}

static const struct scenario scenarios[] = {
    SCENARIO(bits_of_slots_that_are_not_there_are_nobodys),
    SCENARIO(slots_put_by_for_a_waiter_that_gave_up_come_back),
    SCENARIO(a_second_wait_of_the_same_owner_is_not_slept_over),
    SCENARIO(a_waiter_that_gives_up_lets_the_next_one_be_served),
    SCENARIO(memory_given_back_between_look_and_sleep_is_granted),
    SCENARIO(waiters_are_served_in_order_of_arrival_and_nobody_barges),
    SCENARIO(a_writer_that_was_served_and_has_not_run_yet_stops_nobody),
    SCENARIO(a_batch_that_found_no_memory_grows_by_what_is_granted),
    SCENARIO(what_was_granted_to_the_dead_comes_back),
    SCENARIO(a_grant_that_was_not_used_goes_back_before_the_next_wait),
    SCENARIO(a_timeout_that_races_the_grant_keeps_nothing),
    SCENARIO(records_that_may_roam_leave_a_full_batch_to_the_sender),
    SCENARIO(a_slot_whose_bit_died_with_its_claimer_is_found_by_the_reaper),
    SCENARIO(who_loses_a_commit_keeps_what_it_was_granted),
    SCENARIO(what_a_lost_commit_does_not_need_any_more_goes_to_who_waits),
    SCENARIO(what_a_compressor_does_not_use_goes_to_who_waits),
};

int main(int argc, char **argv) {
    return run_scenario(scenarios, sizeof scenarios / sizeof *scenarios, argc, argv);
}
