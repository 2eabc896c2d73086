"""The help pages of the commands in launch/."""

_MODES = """
  mode=submit     sends it (the default)
  mode=plan       prints the exact request, what is sent along, time and cost; needs no AWS account and no network
  mode=rehearse   carries the very request out on this machine, without Docker and without AWS
"""

UPLOAD_HELP = """
Sends the photographs to S3, where SageMaker's jobs read them: in parallel, encrypted, and only what is not there yet.
A run that was interrupted goes on where it was.

  data.root=data/dogImages     folder with train/ valid/ test/; dogImages is fetched if it is missing
  sagemaker.bucket=null        null: the account's default bucket, made if it is missing
  sagemaker.prefix=dogbreed    folder in the bucket; the photographs go to PREFIX/data/dogImages/
  sagemaker.kms_key=null       a KMS key to encrypt with
  mode=plan                    says how much would be sent; needs no AWS account

Example:
  python launch/sagemaker_upload.py data.root=my_dogs
"""

TRAIN_HELP = f"""
Trains on SageMaker with the settings of python -m dogbreed.training.run.
{_MODES}
What people change most, with the defaults:
  sagemaker.role=null                      execution role, name or ARN
  sagemaker.instance_type=ml.g4dn.xlarge   ml.m5.xlarge needs no quota for GPUs
  sagemaker.bucket=null                    null: the account's default bucket
  sagemaker.spot=false                     true: cheaper, may be interrupted, goes on from its last epoch
  sagemaker.max_run=3600                   seconds after which it is stopped
  sagemaker.max_cost=null                  US dollars; what could cost more is not sent
  job=NAME                                 follow a job that runs already

Examples:
  python launch/sagemaker_train.py mode=plan experiment=published
  python launch/sagemaker_train.py mode=rehearse data=sample model.weights=none
  python launch/sagemaker_train.py sagemaker.role=DogbreedExecution data.root=dogImages --lr 0.001 --batch-size 64

conf/sagemaker/default.yaml says what each key means. The photographs are sent by launch/sagemaker_upload.py.
Ctrl-C leaves the job running, and says how to follow and how to stop it.
"""

TUNE_HELP = f"""
Searches hyperparameters on SageMaker: the group search as a tuning job, or all of it in one job.
{_MODES}
What people change most, with the defaults:
  search.trials=20 search.parallel=10      training jobs, and how many at a time (the account's quota must allow it)
  search.objective=val_loss                val_acc with search.direction=maximize; 'average test loss' as published
  search.where=trials                      one_job: all trials in one job, on features that are computed once
  sagemaker.strategy=bayesian              random, hyperband, grid
  sagemaker.warm_start=null                name of an earlier tuning job to learn from
  job=NAME                                 follow a tuning job that runs already

Examples:
  python launch/sagemaker_tune.py mode=plan
  python launch/sagemaker_tune.py mode=plan search.where=one_job
  python launch/sagemaker_tune.py sagemaker.role=DogbreedExecution search.trials=10 search.parallel=2

The plan shows the cost of both ways side by side. The winner is printed, saved, and trained with by one command.
"""
