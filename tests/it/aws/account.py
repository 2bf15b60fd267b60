"""Makes an account of its own at moto: a user who may ask for the logins of one cluster, and that cluster. From the fifth
call on moto checks signatures and rights."""

import json
import sys

import boto3

port = sys.argv[1]


def client(service):
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
    )


iam = client("iam")
iam.create_user(UserName="tunnelkeeper")
key = iam.create_access_key(UserName="tunnelkeeper")["AccessKey"]
iam.put_user_policy(
    UserName="tunnelkeeper",
    PolicyName="logins",
    PolicyDocument=json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "redshift:GetClusterCredentials", "Resource": "*"}],
        }
    ),
)
client("redshift").create_cluster(
    ClusterIdentifier="Analytics",
    NodeType="ra3.large",
    MasterUsername="admin",
    MasterUserPassword="Unused0ne",
)
print(json.dumps({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}))
