# What both sbatch files do; sourced by them. SLURM copies an sbatch file away, so they find this one by the folder in
# which sbatch was called.
#
#   train_and_requeue src.train ARGUMENTS
#
# One process per GPU is started by srun itself, which passes signals on to each of them. Statuses are those of src.train:
#   0    finished                       -> 0
#   138  SIGUSR1, which SLURM sent      -> requeued: the job goes on from its checkpoint when it gets nodes again
#   124  training.time_limit is over    -> requeued
#   143  SIGTERM, at a preemption       -> 143; SLURM requeues preempted jobs itself (--requeue)
#   2, 3, 130                           -> as they are: starting again would not help
#   others (a crash, a lost node)       -> started again in the same nodes, MAX_RESTARTS times at most

train_and_requeue() {
    local attempt status
    export MASTER_ADDR MASTER_PORT WORLD_SIZE
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    WORLD_SIZE=$SLURM_NTASKS
    for ((attempt = 0; attempt <= ${MAX_RESTARTS:-3}; attempt++)); do
        # The variables that torchrun would set differ from task to task: each task sets its own.
        srun --kill-on-bad-exit=1 bash -c \
            'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python -m "$@"' task "$@" &
        step=$!
        trap 'kill -USR1 $step' USR1
        trap 'kill -TERM $step' TERM
        # A signal ends `wait` before the processes have written their checkpoint: wait again.
        status=0
        wait $step || status=$?
        while kill -0 $step 2>/dev/null; do
            status=0
            wait $step || status=$?
        done
        trap - USR1 TERM
        case $status in
            0 | 2 | 3 | 130 | 143) return $status ;;
            124 | 138)
                echo "Ended with status $status: requeued."
                scontrol requeue "$SLURM_JOB_ID"
                return 0
                ;;
        esac
        echo "Ended with status $status (attempt $((attempt + 1)))."
    done
    return $status
}
